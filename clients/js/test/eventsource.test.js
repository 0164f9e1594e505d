import assert from 'node:assert/strict'
import { afterEach, beforeEach, test } from 'node:test'
import { asEventSource } from '../dist/eventsource.js'
import { Bridge, closeAll, freezeTime, openTab, passes, settle } from './support.js'

beforeEach(freezeTime)
afterEach(closeAll)

test('a client can be used where an EventSource is expected', async () => {
  const bridge = new Bridge()
  const { client } = await openTab(bridge)
  const source = asEventSource(client)
  const seen = []
  source.onopen = () => seen.push('open')
  source.onerror = () => seen.push(`error ${source.readyState}`)
  source.onmessage = ({ data, lastEventId }) => seen.push(`${data} ${lastEventId}`)
  source.addEventListener('order', ({ data }) => seen.push(`order ${data}`))
  await settle()
  assert.equal(source.readyState, source.CONNECTING)
  await bridge.last.opens()
  assert.equal(source.readyState, source.OPEN)
  await bridge.last.row(1, { text: '<turbo-stream>' })
  await bridge.last.row(2, { event: 'order', text: 'x' })
  await bridge.last.end()
  await passes(3_000)
  await bridge.last.opens()
  assert.deepEqual(seen, ['open', '<turbo-stream> 1-P1', 'order x', 'error 0', 'open'])
})

test('one that is made after the client is open, opens too', async () => {
  const bridge = new Bridge()
  const { client } = await openTab(bridge)
  await bridge.last.opens()
  const source = asEventSource(client)
  let opened = 0
  source.addEventListener('open', () => opened++)
  await settle()
  assert.equal(opened, 1)
})

test('a client without valid credentials may get them: libraries must not open another one', async () => {
  const bridge = new Bridge()
  bridge.respond = (_, n) => (n === 1 ? 401 : undefined)
  const { client } = await openTab(bridge)
  const source = asEventSource(client)
  const seen = []
  source.onerror = () => seen.push(`error ${source.readyState}`)
  source.onopen = () => seen.push('open')
  source.onmessage = ({ data }) => seen.push(data)
  await settle()
  assert.equal(client.status, 'denied')
  assert.equal(source.readyState, source.CONNECTING)
  client.reconnect()
  await settle()
  await bridge.last.opens()
  await bridge.last.row(1)
  assert.deepEqual(seen, ['open', 'row 1'])
})

test('one that is closed at once stays closed', async () => {
  const bridge = new Bridge()
  const { client } = await openTab(bridge)
  await bridge.last.opens()
  const source = asEventSource(client)
  source.close()
  await settle()
  assert.equal(source.readyState, source.CLOSED)
})

test('closing it leaves the client open, and closing the client closes it', async () => {
  const bridge = new Bridge()
  const { client } = await openTab(bridge)
  await bridge.last.opens()
  const [one, two] = [asEventSource(client), asEventSource(client)]
  const seen = []
  for (const source of [one, two]) source.onmessage = ({ data }) => seen.push(data)
  await settle()
  one.close()
  assert.equal(one.readyState, one.CLOSED)
  await bridge.last.row(1)
  assert.deepEqual(seen, ['row 1'])
  client.close()
  assert.equal(two.readyState, two.CLOSED)
  assert.equal(one.readyState, one.CLOSED)
})
