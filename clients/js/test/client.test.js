import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'
import { connect, TidingsError } from '../dist/index.js'
import { Bridge, FakePage, Locks, closeAll, freezeTime, openTab, passes, row, settle } from './support.js'

beforeEach(freezeTime)
afterEach(closeAll)

let bridge
beforeEach(() => (bridge = new Bridge()))

async function openLive(options) {
  const tab = await openTab(bridge, options)
  await bridge.last.opens()
  return tab
}

/** What is thrown meanwhile without being caught. */
async function uncaught(act) {
  const errors = []
  const take = (error) => errors.push(error)
  process.setUncaughtExceptionCaptureCallback(take)
  await act()
  await settle()
  process.setUncaughtExceptionCaptureCallback(null)
  return errors
}

test('a notification has all that its row has', async () => {
  const { client } = await openLive()
  const notification = client.once('order')
  const text = '{"total": 12}'
  await bridge.last.row('9007199254740993', { event: 'order', text, ref: 'order:12', topic: 'shop:3' })
  const { data, ...others } = await notification
  assert.deepEqual(others, {
    id: '9007199254740993',
    event: 'order',
    topic: 'shop:3',
    ref: 'order:12',
    text,
    createdAt: new Date('2026-11-30T12:00:00Z'),
    position: '9007199254740993-P9007199254740993',
  })
  assert.deepEqual(data, { total: 12 })
})

test('data is parsed once, when it is used, and throws if the text is not JSON', async () => {
  const { client } = await openLive()
  const notifications = []
  client.on('*', (notification) => notifications.push(notification))
  await bridge.last.row(1, { text: '{}' })
  await bridge.last.row(2, { text: 'hello' })
  assert.equal(notifications[0].data, notifications[0].data)
  assert.equal(notifications[1].event, 'message')
  assert.equal(notifications[1].ref, null)
  assert.equal(notifications[1].topic, null)
  assert.throws(() => notifications[1].data, SyntaxError)
})

test('listeners get the rows with their event, all rows, or those without an event', async () => {
  const { client } = await openLive()
  const got = []
  for (const event of ['order', 'message', '*', 'toString']) client.on(event, ({ id }) => got.push(`${event} ${id}`))
  await bridge.last.row(1, { event: 'order' })
  await bridge.last.row(2)
  await bridge.last.row(3, { event: 'toString' })
  assert.deepEqual(got, ['order 1', '* 1', 'message 2', '* 2', 'toString 3', '* 3'])
})

test('rows whose event is a name of the client’s own reach the listeners for all rows only', async () => {
  const tab = await openLive()
  tab.notices.length = 0
  for (const event of ['caught-up', 'topics', 'gap', '*']) await bridge.last.row(event.length, { event })
  assert.deepEqual(tab.received, [9, 6, 3, 1])
  assert.deepEqual(tab.notices, [])
})

test('what the stream says of its topics reaches the application', async () => {
  const { client, notices } = await openLive({ topics: ['team:7', 'team:8'] })
  const topics = client.once('topics')
  await bridge.last.send('event: tidings.topics\ndata: {"topics":1,"refused":["team:8"]}\n\n')
  assert.deepEqual(await topics, { topics: 1, refused: ['team:8'] })
  assert.deepEqual(notices.at(-1), ['topics', { topics: 1, refused: ['team:8'] }])
  assert.equal(client.lastEventId, '0-P0')
})

test('a listener that throws is reported and stops nobody', async () => {
  const { client } = await openLive()
  const got = []
  client.on('*', () => got.push(1))
  client.on('*', () => {
    throw new Error('mine')
  })
  client.on('*', () => got.push(2))
  const errors = await uncaught(async () => {
    await bridge.last.row(1)
    await bridge.last.row(2)
  })
  assert.deepEqual(got, [1, 2, 1, 2])
  assert.deepEqual(
    errors.map(({ message }) => message),
    ['mine', 'mine'],
  )
  assert.equal(client.status, 'live')
})

test('each `on` has an undo of its own, also for the same function and within a listener', async () => {
  const { client } = await openLive()
  const got = []
  const listener = ({ id }) => got.push(id)
  const [off] = [client.on('*', listener), client.on('*', listener)]
  await bridge.last.row(1)
  off()
  off()
  await bridge.last.row(2)
  assert.deepEqual(got, ['1', '1', '2'])
  client.on('*', () => last())
  const last = client.on('*', () => got.push('removed'))
  await bridge.last.row(3)
  assert.deepEqual(got, ['1', '1', '2', '3'])
})

test('once resolves to the next row, and rejects when it is aborted or the client closed', async () => {
  const { client } = await openLive()
  const first = client.once('order')
  const aborting = new AbortController()
  const aborted = client.once('order', { signal: aborting.signal })
  aborting.abort(new Error('enough'))
  await assert.rejects(aborted, { message: 'enough' })
  await assert.rejects(client.once('order', { signal: AbortSignal.abort(new Error('before')) }), { message: 'before' })
  await bridge.last.row(1, { event: 'order' })
  await bridge.last.row(2, { event: 'order' })
  assert.equal((await first).id, '1')
  const pending = client.once('order')
  client.close()
  await assert.rejects(pending, TidingsError)
  await assert.rejects(client.once('order'), TidingsError)
})

test('the loop over all rows ends when the client is closed, and can be left', async () => {
  const { client } = await openLive()
  const got = []
  const loop = (async () => {
    for await (const { id } of client) got.push(id)
  })()
  await bridge.last.send(row(1) + row(2))
  assert.deepEqual(got, ['1', '2'])
  const other = (async () => {
    for await (const { id } of client) if (id === '3') return id
  })()
  await settle()
  await bridge.last.row(3)
  assert.equal(await other, '3')
  client.close()
  await loop
  assert.deepEqual(got, ['1', '2', '3'])
})

test('a slow loop loses the oldest rows, and says so', async () => {
  const tab = await openLive()
  tab.notices.length = 0
  const loop = tab.client[Symbol.asyncIterator]()
  const first = loop.next()
  let text = ''
  for (let id = 1; id <= 1_003; id++) text += row(id)
  await bridge.last.send(text)
  assert.equal((await first).value.id, '4')
  assert.ok(tab.notices.length > 0)
  assert.deepEqual(new Set(tab.notices.map(JSON.stringify)), new Set(['["gap",{"reason":"overflow"}]']))
  const rest = []
  tab.client.close()
  for await (const { id } of loop) rest.push(Number(id))
  assert.equal(rest.at(-1), 1_003)
  assert.equal(rest.length, 999)
})

test('the store tells each change, and only changes', async () => {
  const tab = await openTab(bridge)
  let changes = 0
  const off = tab.client.subscribe(() => changes++)
  await bridge.last.opens()
  assert.equal(changes, 2) // catching-up, live
  await bridge.last.row(1)
  await bridge.last.send(':\n\n')
  assert.equal(changes, 2)
  off()
  tab.client.close()
  assert.equal(changes, 2)
})

test('the next page of a tab resumes where the page before was two seconds before its end', async () => {
  const page = new FakePage()
  const { sessionStorage } = page
  const first = await openLive({ page, user: 'alice' })
  await bridge.last.row(1)
  await passes(2_001)
  await bridge.last.row(2)
  await page.fire('pagehide')
  const second = await openTab(bridge, { page: new FakePage({ sessionStorage }), user: 'alice' })
  assert.equal(bridge.last.lastEventId, '1-P1')
  await bridge.last.opens({ position: '1-P1' })
  await bridge.last.row(2)
  assert.deepEqual(first.received, [1, 2])
  assert.deepEqual(second.received, [2])
})

test('a row that has been on a page for two seconds is not on the next one', async () => {
  const page = new FakePage()
  await openLive({ page, user: 'alice' })
  await bridge.last.row(1)
  await passes(2_001)
  await page.fire('pagehide')
  await openTab(bridge, { page: new FakePage({ sessionStorage: page.sessionStorage }), user: 'alice' })
  assert.equal(bridge.last.lastEventId, '1-P1')
})

test('a row that arrives just before the first page is left is on the next page', async () => {
  const page = new FakePage()
  await openLive({ page, user: 'alice' })
  await bridge.last.row(1)
  await page.fire('pagehide')
  await openTab(bridge, { page: new FakePage({ sessionStorage: page.sessionStorage }), user: 'alice' })
  assert.equal(bridge.last.lastEventId, '0-P0')
})

test('a page that crashes has stored where it was', async () => {
  const page = new FakePage()
  await openLive({ page, user: 'alice' })
  await bridge.last.row(1)
  await passes(2_001)
  await bridge.last.send('id: 1-P5\n\n')
  await openTab(bridge, { page: new FakePage({ sessionStorage: page.sessionStorage }), user: 'alice' })
  assert.equal(bridge.last.lastEventId, '1-P5')
})

test('of tabs that share, each resumes from its own page', async () => {
  const locks = new Locks()
  const leader = await openLive({ page: new FakePage({ locks }), user: 'alice' })
  const page = new FakePage({ locks })
  await openTab(bridge, { page, user: 'alice' })
  await passes(10_000)
  await bridge.last.row(1) // for example because a form was submitted
  await page.fire('pagehide')
  const { sessionStorage } = page
  const next = await openTab(bridge, { page: new FakePage({ locks, sessionStorage }), user: 'alice' })
  assert.equal(bridge.connections.length, 1)
  assert.deepEqual(next.received, [1])
  assert.deepEqual(leader.received, [1])
})

test('nothing is resumed for another user, address or topics, without a user, or with a replay', async () => {
  const page = new FakePage()
  await openLive({ page, user: 'alice' })
  const { sessionStorage } = page
  for (const options of [
    { user: 'bob' },
    { user: 'alice', url: '/other' },
    { user: 'alice', topics: ['team:7'] },
    {},
    { user: 'alice', replay: 5 },
  ]) {
    await openTab(bridge, { page: new FakePage({ sessionStorage }), ...options })
    assert.equal(bridge.last.lastEventId, undefined, JSON.stringify(options))
  }
  const anonymous = new FakePage()
  await openLive({ page: anonymous })
  assert.equal(anonymous.sessionStorage.size, 0)
})

test('`lastEventId` takes precedence over what is stored', async () => {
  const page = new FakePage()
  await openLive({ page, user: 'alice' })
  const { sessionStorage } = page
  await openTab(bridge, { page: new FakePage({ sessionStorage }), user: 'alice', lastEventId: '8-X' })
  assert.equal(bridge.last.lastEventId, '8-X')
})

test('a page whose storage is forbidden or full works without it', async () => {
  const forbidden = new FakePage()
  Object.defineProperty(forbidden, 'sessionStorage', {
    get() {
      throw new DOMException('no', 'SecurityError')
    },
  })
  const full = new FakePage()
  full.sessionStorage.setItem = () => {
    throw new DOMException('full', 'QuotaExceededError')
  }
  for (const page of [forbidden, full]) {
    const tab = await openLive({ page, user: 'alice' })
    await bridge.last.row(1)
    assert.deepEqual(tab.received, [1])
  }
})

test('a wrong option is an error that names it', async () => {
  const page = { location: { href: 'https://app.example.org/' } }
  for (const [options, message] of [
    [{ refersh: () => {} }, /refersh/],
    [{ user: '' }, /user = ""/],
    [{ user: null }, /user = "null"/],
    [{ user: NaN }, /user = "NaN"/],
    [{ user: {} }, /user/],
    [{ user: 'alice', replay: 501 }, /replay = "501"/],
    [{ user: 'alice', replay: -1 }, /replay/],
    [{ replay: NaN }, /replay/],
    [{ replay: '5' }, /replay/],
    [{ refresh: 'x' }, /refresh/],
    [{ token: null }, /token/],
    [{ share: 'no' }, /share/],
    [{ signal: 'x' }, /signal/],
    [{ heartbeat: '15s' }, /heartbeat = "15s"/],
    [{ heartbeat: 15 }, /heartbeat = "15"/], // seconds
    [{ url: 'https://[' }, /URL/],
    [{ url: 7 }, /url/],
    [{ topics: [] }, /topics = ""/], // all topics would be the opposite
    [{ topics: ['', 'team:7'] }, /topics/],
    [{ topics: [undefined] }, /topics/],
    [{ topics: 'team:7' }, /topics = "team:7"/],
  ])
    await assert.rejects(openTab(bridge, { page, ...options }), (error) => {
      assert.ok(error instanceof TypeError)
      assert.match(error.message, message)
      return true
    })
  await assert.rejects(openTab(bridge, { page: {} }), /URL/)
  assert.equal(bridge.connections.length, 0)
  const { client } = await openTab(bridge, { user: undefined, url: undefined, replay: undefined, heartbeat: undefined })
  assert.throws(() => client.on('order', undefined), /listener must be a function/)
  assert.throws(() => client.subscribe('x'), /listener must be a function/)
})

test('a signal closes the client, also before it connects', async () => {
  const controller = new AbortController()
  const tab = await openLive({ signal: controller.signal })
  controller.abort()
  assert.equal(tab.client.status, 'closed')
  assert.equal(bridge.open.length, 0)
  const never = await openTab(bridge, { signal: AbortSignal.abort() })
  assert.equal(never.client.status, 'closed')
  assert.equal(bridge.connections.length, 1)
})

test('it works without a page: in Node, with an absolute address', async () => {
  const client = connect({ url: 'https://stream.example.org/stream', fetch: bridge.fetch, token: () => 'x' })
  await settle()
  await bridge.last.opens()
  const notification = client.once('*')
  await bridge.last.row(1)
  assert.equal((await notification).id, '1')
  client.close()
  assert.throws(() => connect({ fetch: bridge.fetch }), /URL/)
})

test('the global `fetch` is the default', async () => {
  const fetch = mock.method(globalThis, 'fetch', bridge.fetch)
  const client = connect({ url: 'https://stream.example.org/stream' })
  await settle()
  assert.equal(fetch.mock.callCount(), 1)
  client.close()
  fetch.mock.restore()
})

test('`using` closes it', async () => {
  if (!Symbol.dispose) return
  const tab = await openLive()
  tab.client[Symbol.dispose]()
  assert.equal(tab.client.status, 'closed')
})
