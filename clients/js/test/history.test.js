import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'
import { createHistory } from '../dist/history.js'

beforeEach(() => mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 }))
afterEach(() => mock.timers.reset())

function step(from, to, text) {
  return { from, to, ...(text !== undefined && { type: 'message', data: { event: null, text, created_at: null } }) }
}

/** A history at 3-C, after a step without a row, two with one, and one that came again. */
function example() {
  const history = createHistory('0-A', () => {})
  for (const each of [step('0-A', '0-B'), step('0-B', '2-C', 'a'), step('2-C', '3-C', 'b'), step('3-C', '3-C', 'b')])
    history.apply(each)
  return history
}

/** The steps after the first, which says what the stream has of its topics. */
const path = (steps) => steps && steps.slice(1).map(({ from, to }) => `${from} ${to}`)

test('history: it knows what follows each of its positions', () => {
  const history = example()
  assert.equal(history.position(), '3-C')
  assert.deepEqual(path(history.since('0-A', 0)), ['0-A 0-B', '0-B 2-C', '2-C 3-C', '3-C 3-C'])
  assert.deepEqual(path(history.since('2-C', 9)), ['2-C 3-C', '3-C 3-C'])
  assert.deepEqual(path(history.since('3-C', 0)), ['3-C 3-C'])
  assert.equal(history.since('9-X', 0), null)
})

test('history: without a position, it knows the last rows, or that there were more', () => {
  const history = example()
  assert.deepEqual(path(history.since('', 0)), [])
  assert.deepEqual(path(history.since('', 2)), ['2-C 3-C', '3-C 3-C'])
  assert.equal(history.since('', 4), null)
})

test('history: what the stream last said of its topics comes first, wherever the other begins', () => {
  const history = example()
  assert.deepEqual(history.since('3-C', 0)[0], { from: '3-C', to: '3-C' })
  for (const refused of [['team:7'], []])
    history.apply({ ...step('3-C', '3-C'), type: 'tidings.topics', data: { topics: 1, refused } })
  for (let n = 0; n < 1_000; n++) history.apply(step('3-C', '3-C', 'x'))
  const topics = { type: 'tidings.topics', data: { topics: 1, refused: [] } }
  assert.deepEqual(history.since('3-C', 0)[0], { ...topics, from: '3-C', to: '3-C' })
  assert.deepEqual(history.since('', 2)[0], { ...topics, from: '', to: '' })
  assert.equal(history.since('9-X', 0), null)
})

test('history: steps that lead nowhere take no room', () => {
  const history = example()
  for (let n = 0; n < 1_000; n++) history.apply(step('3-C', '3-C'))
  assert.equal(path(history.since('0-A', 0)).length, 4)
})

test('history: only so many steps are kept, and only one large text', () => {
  const history = createHistory('0', () => {})
  for (let n = 0; n < 150; n++) history.apply(step(`${n}`, `${n + 1}`, 'x'.repeat(1_000)))
  assert.equal(history.since('50', 0), null)
  assert.equal(path(history.since('51', 0)).length, 99)
  history.apply(step('150', '151', 'x'.repeat(20_000)))
  assert.equal(history.since('150', 0), null)
  history.apply(step('151', '152', 'x'.repeat(20_000)))
  assert.equal(history.since('151', 0), null)
  assert.deepEqual(path(history.since('152', 0)), [])
})

test('history: a row is new once, and 10,000 are remembered', () => {
  const history = createHistory('', () => {})
  const apply = (id) => history.apply(step(history.position(), `${id}-A`, 'x'))
  for (let id = 1; id <= 10_000; id++) assert.ok(apply(id))
  assert.equal(apply(1), null)
  assert.ok(apply(10_001))
  assert.ok(apply(1))
})

test('history: what is stored is two seconds old, and never passes a younger row', () => {
  const stored = []
  const history = createHistory('', (position) => stored.push(position))
  history.apply(step('', '0-A')) // the first page begins here
  history.apply(step('0-A', '1-A', 'x'))
  mock.timers.tick(1_500)
  history.apply(step('1-A', '1-B')) // a heartbeat
  mock.timers.tick(400)
  history.save()
  assert.deepEqual(stored, ['0-A'])
  mock.timers.tick(101)
  history.save()
  assert.deepEqual(stored, ['0-A', '1-B'])
})
