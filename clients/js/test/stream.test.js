import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'
import { Bridge, FakePage, closeAll, freezeTime, openTab, passes, problem, row, settle } from './support.js'

beforeEach(freezeTime)
afterEach(closeAll)

test('a stream is requested with all that the bridge needs', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge, { url: '/events?x=1', replay: 20, credentials: 'include' })
  const { url, headers, init } = bridge.last
  assert.equal(url.href, 'https://app.example.org/events?x=1&format=json&replay=20')
  assert.deepEqual(headers, { Accept: 'text/event-stream' })
  assert.equal(init.credentials, 'include')
  assert.equal(init.cache, 'no-store')
  assert.equal(tab.client.status, 'connecting')
  await bridge.last.opens()
  await bridge.last.row(1)
  assert.deepEqual(tab.received, [1])
  assert.deepEqual(tab.statuses, ['catching-up', 'live'])
})

test('a page that knows its user gets no stream of another one, whose cookie it may have', async () => {
  const bridge = new Bridge()
  await openTab(bridge, { user: 'o\u2019hara & co', share: false })
  assert.equal(bridge.last.url.searchParams.get('expected_user'), 'o\u2019hara & co')
  await openTab(bridge, { url: '/events?expected_user=8', user: 7, share: false })
  assert.deepEqual(bridge.last.url.searchParams.getAll('expected_user'), ['7'])
})

test('it requests the topics, in an order that all tabs have, and in addition to those of the address', async () => {
  const bridge = new Bridge()
  const topics = Object.freeze(['team:8', 'team:7 & co', '*'])
  await openTab(bridge, { url: '/events?topic=a', topics })
  assert.deepEqual(bridge.last.url.searchParams.getAll('topic'), ['a', '*', 'team:7 & co', 'team:8'])
  await openTab(bridge)
  assert.equal(bridge.last.url.searchParams.has('topic'), false)
})

test('it resumes after the last event, also one without data, and asks for no replay then', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge, { replay: 5 })
  await bridge.last.opens()
  await bridge.last.row(7)
  await bridge.last.send('id: 7-P9\n\n')
  assert.equal(tab.client.lastEventId, '7-P9')
  await bridge.last.end()
  await passes(3_000)
  assert.equal(bridge.connections.length, 2)
  assert.equal(bridge.last.lastEventId, '7-P9')
  assert.equal(bridge.last.url.searchParams.get('replay'), null)
})

test('an event whose block is incomplete when the connection breaks is received again', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  await bridge.last.send(row(1).slice(0, -1))
  await bridge.last.breaks()
  await passes(6_000)
  assert.equal(bridge.last.lastEventId, '0-P0')
  assert.deepEqual(tab.received, [])
})

test('a row that comes again after a disconnect is delivered once', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  await bridge.last.row(1)
  await bridge.last.end()
  await passes(3_000)
  await bridge.last.opens()
  await bridge.last.row(1, { position: '1-P8' })
  await bridge.last.row(2)
  assert.deepEqual(tab.received, [1, 2])
  assert.equal(tab.client.lastEventId, '2-P2')
})

test('after a crash of the database, another row with the id of a lost one is delivered', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  await bridge.last.row(1)
  await bridge.last.row(1, { created_at: '2026-11-30T12:00:01.000000Z' })
  assert.deepEqual(tab.received, [1, 1])
})

test('an orderly end is followed by a connection after exactly the `retry:`', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  await bridge.last.send('retry: 4321\n\n')
  await bridge.last.end()
  assert.equal(tab.client.status, 'offline')
  assert.equal(tab.client.error, null)
  await passes(4_320)
  assert.equal(bridge.connections.length, 1)
  await passes(1)
  assert.equal(bridge.connections.length, 2)
})

test('failures are retried with a growing, random delay, up to a minute and a half', async () => {
  const bridge = new Bridge()
  bridge.respond = () => new TypeError('Failed to fetch')
  const random = mock.method(Math, 'random', () => 0)
  const tab = await openTab(bridge)
  assert.equal(tab.client.status, 'offline')
  assert.match(tab.client.error.message, /Failed to fetch/)
  const waits = []
  for (let n = 1; waits.length < 9; n++) {
    let wait = 0
    while (bridge.connections.length === n) {
      await passes(500)
      wait += 500
    }
    waits.push(wait / 1_000)
  }
  assert.deepEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60])
  random.mock.mockImplementation(() => 1)
  await passes(60_000) // the last wait was chosen before
  const n = bridge.connections.length
  await passes(89_999)
  assert.equal(bridge.connections.length, n)
  await passes(1)
  assert.equal(bridge.connections.length, n + 1)
  random.mock.restore()
})

test('the delay never falls below the `retry:`, and begins anew once a stream was open', async () => {
  const bridge = new Bridge()
  const random = mock.method(Math, 'random', () => 0)
  await openTab(bridge)
  for (let n = 1; n <= 3; n++) {
    await bridge.last.opens()
    await bridge.last.breaks()
    await passes(2_999)
    assert.equal(bridge.connections.length, n)
    await passes(1)
    assert.equal(bridge.connections.length, n + 1)
  }
  random.mock.restore()
})

test('a deferral is followed by a connection after exactly its time, and keeps the last id', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge, { lastEventId: '5-A' })
  for (let n = 1; n <= 3; n++) {
    await bridge.last.send('retry: 45000\n: the bridge is full\n')
    await bridge.last.end()
    assert.equal(tab.client.status, 'offline')
    await tab.page.fire('online') // the server's time counts, not the user's
    await passes(44_999)
    assert.equal(bridge.connections.length, n)
    await passes(1)
    assert.equal(bridge.connections.length, n + 1)
    assert.equal(bridge.last.lastEventId, '5-A')
  }
  assert.deepEqual(tab.notices, [])
})

test('a `retry:` that is very short or very long is bounded', async () => {
  const bridge = new Bridge()
  await openTab(bridge)
  await bridge.last.send('retry: 0\n')
  await bridge.last.send('retry: 1\n')
  await bridge.last.end()
  await passes(99)
  assert.equal(bridge.connections.length, 1)
  await passes(1)
  assert.equal(bridge.connections.length, 2)
  await bridge.last.send('retry: 99999999999999\n')
  await bridge.last.end()
  await passes(3_599_999)
  assert.equal(bridge.connections.length, 2)
  await passes(1)
  assert.equal(bridge.connections.length, 3)
})

test('a stream that has gone silent is replaced after three heartbeats; any byte counts', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  for (let n = 0; n < 5; n++) {
    await passes(40_000)
    await bridge.last.send(n % 2 ? ':\n\n' : 'd')
  }
  assert.equal(bridge.connections.length, 1)
  await passes(44_999)
  assert.equal(tab.client.status, 'live')
  await passes(1)
  assert.equal(tab.client.status, 'offline')
  assert.match(tab.client.error.message, /heartbeat/)
  assert.equal(bridge.connections[0].isAborted, true)
  await passes(6_000)
  assert.equal(bridge.connections.length, 2)
})

test('with other heartbeats, silence is measured by them', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge, { heartbeat: 1_000 })
  await bridge.last.opens()
  await passes(2_999)
  assert.equal(tab.client.status, 'live')
  await passes(1)
  assert.equal(tab.client.status, 'offline')
})

test('a request without a response, and a `refresh` that never ends, are given up', async () => {
  const bridge = new Bridge()
  bridge.respond = () => new Promise(() => {})
  const tab = await openTab(bridge, { refresh: () => new Promise(() => {}) })
  await passes(45_000)
  assert.equal(tab.client.status, 'offline')
  bridge.respond = () => 401
  await passes(6_000)
  assert.equal(bridge.connections.length, 2)
  assert.equal(tab.client.status, 'connecting')
  await passes(45_000)
  assert.equal(tab.client.status, 'offline')
})

test('a 401 calls `refresh`, and the stream goes on where it was', async () => {
  const bridge = new Bridge()
  const refresh = mock.fn(async () => {})
  const tab = await openTab(bridge, { refresh })
  await bridge.last.opens()
  await bridge.last.row(1)
  await bridge.last.end()
  bridge.respond = () => (refresh.mock.callCount() ? undefined : 401)
  await passes(3_000)
  assert.equal(refresh.mock.callCount(), 1)
  assert.equal(bridge.connections.length, 3)
  assert.equal(bridge.last.lastEventId, '1-P1')
  assert.ok(!tab.statuses.includes('denied'))
})

test('each time that the credentials expire, they are renewed', async () => {
  const bridge = new Bridge()
  let isExpired = true
  bridge.respond = () => (isExpired ? 401 : undefined)
  const refresh = mock.fn(() => void (isExpired = false))
  const tab = await openTab(bridge, { refresh })
  for (let n = 1; n <= 3; n++) {
    assert.equal(refresh.mock.callCount(), n)
    await bridge.last.opens()
    assert.equal(tab.client.status, 'live')
    await bridge.last.end() // for another reason
    await passes(3_000)
    assert.equal(refresh.mock.callCount(), n)
    await bridge.last.opens()
    isExpired = true
    await bridge.last.end()
    await passes(3_000)
  }
})

test('a second 401 after `refresh` is final, until `reconnect`', async () => {
  const bridge = new Bridge()
  bridge.respond = () => 401
  const refresh = mock.fn(async () => {})
  const tab = await openTab(bridge, { refresh })
  assert.equal(tab.client.status, 'denied')
  assert.equal(tab.client.error.status, 401)
  assert.equal(tab.client.error.problem, 'because of 401')
  await tab.page.fire('online')
  await tab.page.show()
  await passes(10_000_000)
  assert.equal(bridge.connections.length, 2)
  bridge.respond = () => {}
  tab.client.reconnect()
  await settle()
  assert.equal(refresh.mock.callCount(), 2)
  await bridge.last.opens()
  assert.equal(tab.client.status, 'live')
  assert.equal(tab.client.error, null)
})

test('`refresh` that resolves to false means that the user is logged out', async () => {
  const bridge = new Bridge()
  bridge.respond = () => 401
  const tab = await openTab(bridge, { refresh: () => false })
  assert.equal(tab.client.status, 'denied')
  assert.equal(bridge.connections.length, 1)
})

test('`refresh` that fails is called again after a while', async () => {
  const bridge = new Bridge()
  bridge.respond = (_, n) => (n === 1 ? 401 : undefined)
  let fails = true
  const tab = await openTab(bridge, {
    refresh: async () => {
      if (fails) throw new TypeError('no network')
    },
  })
  assert.equal(tab.client.status, 'offline')
  fails = false
  await passes(1_500)
  assert.equal(bridge.connections.length, 2)
})

test('without a way to new credentials, a 401 is final; a 403 is always', async () => {
  for (const [status, options, requests] of [
    [401, {}, 1],
    [403, { refresh: () => {} }, 1],
    [401, { token: () => 'x' }, 2],
    [401, { ticket: () => 'x' }, 2],
  ]) {
    const bridge = new Bridge()
    bridge.respond = () => status
    const tab = await openTab(bridge, options)
    await passes(1_000_000)
    assert.equal(tab.client.status, 'denied')
    assert.equal(tab.client.error.status, status)
    assert.equal(bridge.connections.length, requests)
  }
})

test('each connection has a token and a ticket of its own', async () => {
  const bridge = new Bridge()
  let n = 0
  await openTab(bridge, { token: async () => `token-${++n}`, ticket: () => `a&b=${n}` })
  await bridge.last.end()
  await passes(6_000)
  assert.deepEqual(
    bridge.connections.map(({ headers, url }) => [headers.Authorization, url.searchParams.get('ticket')]),
    [
      ['Bearer token-1', 'a&b=1'],
      ['Bearer token-2', 'a&b=2'],
    ],
  )
})

test('before the credentials expire, they are renewed while the stream goes on', async () => {
  const bridge = new Bridge()
  let done
  const tab = await openTab(bridge, { refresh: () => new Promise((resolve) => (done = resolve)) })
  await bridge.last.opens()
  await bridge.last.send('event: tidings.expiring\ndata: {"in_seconds":30}\n\n')
  await bridge.last.row(1)
  assert.deepEqual(tab.received, [1])
  assert.equal(bridge.connections.length, 1)
  done()
  await settle()
  assert.equal(bridge.connections.length, 2)
  assert.equal(bridge.connections[0].isAborted, true)
  assert.equal(bridge.last.lastEventId, '1-P1')
  assert.ok(!tab.statuses.includes('offline'))
})

test('an expiry is ignored if there are no new credentials to be had, or not now', async () => {
  for (const options of [{}, { refresh: () => Promise.reject(new Error('down')) }]) {
    const bridge = new Bridge()
    const tab = await openTab(bridge, options)
    await bridge.last.opens()
    await bridge.last.send('event: tidings.expiring\ndata: {"in_seconds":30}\n\n')
    assert.equal(bridge.connections.length, 1)
    assert.equal(tab.client.status, 'live')
  }
})

test('a token is replaced by a new connection when it expires', async () => {
  const bridge = new Bridge()
  await openTab(bridge, { token: () => 'x' })
  await bridge.last.opens()
  await bridge.last.send('event: tidings.expiring\ndata: {"in_seconds":30}\n\n')
  assert.equal(bridge.connections.length, 2)
})

test('other statuses and other content are failures that are explained and retried', async () => {
  for (const [respond, message, detail] of [
    [() => problem(503), 'no event stream: status 503', 'because of 503'],
    [() => new Response('<h1>Log in</h1>'), 'no event stream: status 200'],
    [() => new Response('bad gateway', { status: 502 }), 'no event stream: status 502'],
  ]) {
    const bridge = new Bridge()
    bridge.respond = respond
    const tab = await openTab(bridge)
    assert.equal(tab.client.status, 'offline')
    assert.equal(tab.client.error.message, message)
    assert.equal(tab.client.error.problem, detail)
    await passes(1_500)
    assert.equal(bridge.connections.length, 2)
  }
})

test('a page that wakes replaces a connection that may have died, and keeps one that has not', async () => {
  for (const [type, silence, expected] of [
    ['pageshow', 20_001, 2],
    ['online', 20_001, 2],
    ['visibilitychange', 20_001, 2],
    ['resume', 20_001, 2],
    ['pageshow', 19_000, 1],
    ['online', 19_000, 1],
    ['visibilitychange', 19_000, 1],
  ]) {
    const bridge = new Bridge()
    const tab = await openTab(bridge)
    await bridge.last.opens()
    await passes(silence)
    await tab.page.fire(type)
    assert.equal(bridge.connections.length, expected, `${type} after ${silence}`)
  }
})

test('a page that wakes retries within a second, at a random time', async () => {
  const bridge = new Bridge()
  bridge.respond = () => new TypeError('Failed to fetch')
  const tab = await openTab(bridge)
  for (let n = 1; n < 6; n++) await passes(100_000)
  const { length } = bridge.connections
  const random = mock.method(Math, 'random', () => 0.5)
  await tab.page.fire('online')
  await passes(499)
  assert.equal(bridge.connections.length, length)
  await passes(1)
  assert.equal(bridge.connections.length, length + 1)
  random.mock.restore()
})

test('a page that is left or frozen has no connection until it is used again', async () => {
  for (const [leave, enter] of [
    ['pagehide', 'pageshow'],
    ['freeze', 'resume'],
  ]) {
    const bridge = new Bridge()
    const tab = await openTab(bridge)
    await bridge.last.opens()
    await bridge.last.row(1)
    await tab.page.fire(leave)
    assert.equal(bridge.open.length, 0)
    assert.equal(tab.client.status, 'offline')
    tab.client.reconnect()
    await passes(10_000_000)
    assert.equal(bridge.connections.length, 1)
    await tab.page.fire(enter)
    assert.equal(bridge.connections.length, 2)
    assert.equal(bridge.last.lastEventId, '1-P1')
  }
})

test('reconnect replaces the connection at once', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  tab.client.reconnect()
  await settle()
  assert.equal(bridge.connections.length, 2)
  assert.equal(bridge.open.length, 1)
})

test('what a connection still had when it was replaced is left to the next one', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge)
  await bridge.last.opens()
  tab.client.on('*', ({ id }) => id === '1' && tab.client.reconnect())
  await bridge.last.send(`${row(1)}${row(2)}event: tidings.caught-up\ndata: {}\nid: 2-P2\n\n`)
  assert.equal(tab.client.status, 'connecting')
  assert.equal(bridge.last.lastEventId, '1-P1')
  assert.deepEqual(tab.received, [1])
})

test('gaps and the end of the backlog are reported', async () => {
  const bridge = new Bridge()
  const tab = await openTab(bridge, { lastEventId: 'x' })
  await bridge.last.send('retry: 3000\n\nevent: tidings.gap\ndata: {"reason":"epoch"}\n\n')
  await bridge.last.opens({ rows: 3 })
  await bridge.last.send('event: tidings.heartbeat\ndata: {}\nid: 0-P1\n\n')
  assert.deepEqual(tab.notices, [
    ['gap', { reason: 'epoch' }],
    ['caught-up', { rows: 3 }],
  ])
  assert.equal(tab.client.lastEventId, '0-P1')
  assert.deepEqual(tab.received, [])
})

test('a closed client does nothing any more', async () => {
  const bridge = new Bridge()
  const page = new FakePage()
  const tab = await openTab(bridge, { page, refresh: () => {} })
  const { last } = bridge
  await last.opens()
  // In the same chunk, the rows after the one that closes it aren't delivered.
  tab.client.on('*', () => tab.client.close())
  await last.send(row(1) + row(2))
  assert.deepEqual(tab.received, [1])
  assert.deepEqual(tab.statuses, ['catching-up', 'live', 'closed'])
  assert.equal(last.isAborted, true)
  tab.client.reconnect()
  tab.client.close()
  for (const type of ['online', 'pageshow', 'pagehide', 'pageshow', 'resume']) await page.fire(type)
  await passes(10_000_000)
  assert.equal(bridge.connections.length, 1)
  assert.equal(tab.client.status, 'closed')
})

test('a client that is closed while it waits, refreshes or connects stays closed', async () => {
  for (const [respond, options] of [
    [() => 503, {}],
    [() => new Promise(() => {}), {}],
    [() => 401, { refresh: () => new Promise((resolve) => setTimeout(resolve, 1_000)) }],
    [() => {}, { token: () => new Promise((resolve) => setTimeout(resolve, 1_000, 'x')) }],
  ]) {
    const bridge = new Bridge()
    bridge.respond = respond
    const tab = await openTab(bridge, options)
    const { length } = bridge.connections
    tab.client.close()
    await passes(10_000_000)
    assert.equal(bridge.open.length, 0)
    assert.equal(bridge.connections.length, length)
    assert.equal(tab.client.status, 'closed')
  }
})
