import assert from 'node:assert/strict'
import { afterEach, beforeEach, mock, test } from 'node:test'
import { Bridge, FakePage, Locks, closeAll, freezeTime, openChannels, openTab, passes, row, settle } from './support.js'

const NAME = 'tidings:https://app.example.org/stream?expected_user=alice'

let bridge
let locks

beforeEach(() => {
  freezeTime()
  bridge = new Bridge()
  locks = new Locks()
})
afterEach(closeAll)

/** A tab of alice's, in a page of this browser. */
function open(options) {
  return openTab(bridge, { page: new FakePage({ locks }), user: 'alice', ...options })
}

/** Opens tabs, of which the first leads and is live. */
async function openTabs(count, options) {
  const tabs = [await open(options)]
  await bridge.last.opens()
  while (tabs.length < count) tabs.push(await open(options))
  return tabs
}

/** Counts the questions that tabs ask. */
function countQuestions(t) {
  const channel = new BroadcastChannel(NAME)
  const counter = { questions: 0 }
  channel.onmessage = ({ data }) => (counter.questions += data.step ? 0 : 1)
  t.after(() => channel.close())
  return counter
}

const leaders = (tabs) => tabs.filter(({ client }) => client.leading).length

test('eight tabs share one stream, with their status, position and rows', async () => {
  const tabs = await openTabs(8)
  assert.equal(bridge.connections.length, 1)
  assert.equal(leaders(tabs), 1)
  await bridge.last.row(1)
  await bridge.last.send('id: 1-P5\n\n')
  for (const { client, received, notices } of tabs) {
    assert.deepEqual(received, [1])
    assert.equal(client.status, 'live')
    assert.equal(client.lastEventId, '1-P5')
    assert.deepEqual(notices, [['caught-up', { rows: 0 }]])
  }
})

test('a store that follows tells only changes, too', async () => {
  const [, follower] = await openTabs(2)
  let changes = 0
  follower.client.subscribe(() => changes++)
  await bridge.last.row(1)
  await bridge.last.row(2)
  assert.equal(changes, 0)
  await bridge.last.end()
  assert.equal(changes, 1)
})

test('tabs share only with tabs of the same user and address, and if they are asked to', async () => {
  for (const options of [
    { user: 'alice' },
    { user: 'bob' },
    { user: 7 },
    { user: 'alice', url: '/other' },
    { user: 'alice', topics: ['team:7'] },
    { user: 'alice', topics: ['team:7', 'team:8'] },
    { user: 'alice', share: false },
    { user: undefined },
    { page: new FakePage() }, // no locks
  ])
    await open(options)
  assert.equal(bridge.connections.length, 9)
  await open({ user: '7' }) // the same user as 7
  await open({ topics: ['team:8', 'team:7'] }) // the same topics
  assert.equal(bridge.connections.length, 9)
})

test('every tab is told which topics are refused, also one that comes later', async () => {
  const topics = ['team:7', 'team:8']
  const report = { topics: 1, refused: ['team:8'] }
  const told = ({ notices }) => notices.filter(([name]) => name === 'topics').map(([, data]) => data)
  const tabs = [await open({ topics }), await open({ topics })]
  await bridge.last.send(`event: tidings.open\ndata: {"resumed":false}\nid: 0-P0\n\n`)
  await bridge.last.send(`event: tidings.topics\ndata: ${JSON.stringify(report)}\n\n`)
  await bridge.last.row(1, { topic: 'team:7' })
  await bridge.last.send('event: tidings.caught-up\ndata: {"rows":1}\nid: 1-P1\n\n')
  assert.deepEqual(tabs.map(told), [[report], [report]])
  const later = await open({ topics })
  await bridge.last.row(2, { topic: 'team:7' })
  assert.deepEqual(told(later), [report])
  assert.deepEqual(later.notices.at(-1), ['caught-up', { rows: 0 }])
  assert.deepEqual(later.received, [2])
  assert.equal(bridge.connections.length, 1)
})

test('no two pairs of address and user have the same name', async () => {
  await open({ url: 'https://a.example/x', user: 'y:z' })
  await open({ url: 'https://a.example/x:y', user: 'z' })
  assert.equal(bridge.connections.length, 2)
})

test('rows of another user reach nobody else', async () => {
  const alice = await openTabs(2)
  const bob = await open({ user: 'bob' })
  await bridge.last.opens()
  await bridge.last.row(1)
  assert.deepEqual(bob.received, [1])
  for (const { received } of alice) assert.deepEqual(received, [])
})

test('when the leader is closed, the next tab resumes where the tabs are', async () => {
  const tabs = await openTabs(3)
  await bridge.last.row(1)
  tabs[0].client.close()
  await settle()
  assert.equal(bridge.open.length, 1)
  assert.equal(bridge.last.lastEventId, '1-P1')
  assert.equal(leaders(tabs), 1)
  await bridge.last.opens({ position: '1-P2' })
  await bridge.last.row(2)
  assert.deepEqual(tabs.map(({ received }) => received), [[1], [1, 2], [1, 2]])
})

test('a leader whose page is left or frozen gives way, and follows when it is used again', async () => {
  for (const [leave, enter] of [
    ['pagehide', 'pageshow'],
    ['freeze', 'resume'],
  ]) {
    const tabs = await openTabs(2, { user: leave })
    await tabs[0].page.fire(leave)
    assert.equal(tabs[1].client.leading, true)
    await bridge.last.opens({ position: '0-P1' })
    await bridge.last.row(1)
    await tabs[0].page.fire(enter)
    assert.equal(tabs[0].client.leading, false)
    assert.equal(tabs[0].client.status, 'live')
    assert.deepEqual(tabs[0].received, [1])
    assert.deepEqual(tabs[1].received, [1])
    for (const { client } of tabs) client.close()
  }
})

for (const first of ['messages', 'locks']) {
  test(`a visible tab replaces a leader that hangs, and no row is lost or repeated: ${first} first`, async () => {
    const tabs = await openTabs(3)
    await bridge.last.row(1)
    const [old] = bridge.connections
    await tabs[2].page.hide()
    tabs[0].page.hang()
    await passes(20_000) // nothing was heard: the others ask
    assert.equal(bridge.connections.length, 1)
    await passes(3_000) // no answer
    const { last } = bridge
    assert.equal(last.lastEventId, '1-P1')
    await last.opens({ position: '1-P1' })
    await last.row(2)
    await tabs[0].page.recover({ first })
    assert.equal(leaders(tabs), 1)
    assert.equal(tabs[0].client.leading, false)
    assert.equal(old.isAborted, true)
    await last.row(3)
    for (const { received } of tabs) assert.deepEqual(received, [1, 2, 3])
    assert.deepEqual(bridge.open, [last])
  })
}

test('a leader that hangs is replaced in time, whatever the heartbeat', async () => {
  for (const heartbeat of [1_000, 3_000, 60_000]) {
    const user = `user${heartbeat}`
    const first = await open({ user, heartbeat })
    await bridge.last.opens()
    const second = await open({ user, heartbeat })
    first.page.hang()
    for (let left = (heartbeat * 4) / 3 + 3_000; left > -50; left -= 50) await passes(50)
    assert.equal(second.client.leading, true, `${heartbeat}`)
  }
})

test('of many visible tabs, one replaces the leader', async () => {
  const tabs = await openTabs(8)
  tabs[0].page.hang()
  for (let time = 0; time < 30_000; time += 50) await passes(50)
  assert.equal(leaders(tabs.slice(1)), 1)
  assert.ok(bridge.connections.length <= 3, `${bridge.connections.length} connections`)
})

test('if several take over at once, all follow the last', async (t) => {
  let now = 0.9 // the terms of one millisecond
  t.mock.method(Math, 'random', () => (now -= 0.01))
  const tabs = await openTabs(6)
  tabs[0].page.hang()
  await passes(20_000)
  await passes(3_000)
  assert.equal(leaders(tabs.slice(1)), 1)
  const { last } = bridge
  await last.opens()
  await last.row(1)
  await last.row(2)
  for (const { received } of tabs.slice(1)) assert.deepEqual(received, [1, 2])
})

test('a hidden tab replaces nobody, but asks when it becomes visible', async () => {
  const tabs = await openTabs(2)
  await tabs[1].page.hide()
  tabs[0].page.hang()
  await passes(1_000_000)
  assert.equal(tabs[1].client.leading, false)
  await tabs[1].page.show()
  await passes(1_999)
  assert.equal(tabs[1].client.leading, false)
  await passes(1_001)
  assert.equal(tabs[1].client.leading, true)
})

test('a leader that is alive is not replaced: heartbeats are signs of life, and so are answers', async (t) => {
  const tabs = await openTabs(3)
  const counter = countQuestions(t)
  for (let n = 0; n < 10; n++) {
    await passes(15_000)
    await bridge.last.send(n % 2 ? ':\n\n' : 'id: 0-P0\n\n')
  }
  assert.equal(tabs[0].client.leading, true)
  assert.equal(counter.questions, 0)
  // The bridge is silent, but the leader isn't.
  await passes(44_000)
  assert.ok(counter.questions > 0)
  assert.equal(tabs[0].client.leading, true)
  assert.equal(bridge.connections.length, 1)
})

test('what a replaced leader still says is ignored', async () => {
  const tabs = await openTabs(2)
  const channel = new BroadcastChannel(NAME)
  const reports = []
  channel.onmessage = ({ data }) => data.step && reports.push(data)
  await bridge.last.row(1)
  tabs[0].client.close()
  await settle()
  await bridge.last.opens({ position: '1-P1' })
  const follower = await open()
  const { term } = reports[0]
  assert.ok(reports.at(-1).term > term)
  const data = { event: null, text: 'late', created_at: null }
  channel.postMessage({ term, status: 'offline', step: { from: '1-P1', to: '9-P9', type: 'message', data } })
  await settle()
  assert.deepEqual(follower.received, [])
  assert.equal(follower.client.lastEventId, '1-P1')
  assert.equal(follower.client.status, 'live')
  channel.close()
})

test('a tab that missed something asks for it once, and gets it once and in order', async (t) => {
  const tabs = await openTabs(2)
  const counter = countQuestions(t)
  tabs[1].page.hang()
  await bridge.last.row(1)
  await bridge.last.row(2)
  tabs[1].page.hang() // forgets what was relayed, like a page in the back/forward cache
  await tabs[1].page.recover()
  await bridge.last.send(row(3) + row(4) + row(5))
  assert.deepEqual(tabs[1].received, [1, 2, 3, 4, 5])
  assert.equal(bridge.connections.length, 1)
  assert.equal(counter.questions, 1)
})

test('what the leader no longer has, a tab reads from a stream of its own, while rows arrive', async () => {
  const tabs = await openTabs(2)
  tabs[1].page.hang()
  let text = ''
  for (let id = 1; id <= 150; id++) text += row(id)
  await bridge.last.send(text)
  tabs[1].page.hang() // forgets what was relayed
  await tabs[1].page.recover()
  await tabs[1].page.show()
  const [main, own] = bridge.connections
  assert.equal(bridge.connections.length, 2)
  assert.equal(own.lastEventId, '0-P0')
  assert.equal(tabs[1].client.leading, false)
  // The row arrives on both streams, first on the leader's.
  await main.row(151)
  await main.row(152)
  await own.send(text)
  await own.row(151)
  await own.send('event: tidings.caught-up\ndata: {"rows":151}\nid: 151-P900\n\n')
  assert.equal(own.isAborted, true)
  assert.equal(tabs[1].received.at(-1), 152)
  await main.row(153)
  const all = Array.from({ length: 153 }, (_, index) => index + 1)
  for (const { received, client } of tabs) {
    assert.deepEqual(received, all)
    assert.equal(client.lastEventId, '153-P153')
    assert.equal(client.status, 'live')
  }
})

test('if too much arrives meanwhile, the tab catches up again', async () => {
  const tabs = await openTabs(2)
  tabs[1].page.hang()
  let text = ''
  for (let id = 1; id <= 150; id++) text += row(id)
  await bridge.last.send(text)
  tabs[1].page.hang()
  await tabs[1].page.recover()
  await tabs[1].page.show()
  const [main, own] = bridge.connections
  let more = ''
  for (let id = 151; id <= 1_250; id++) more += row(id)
  await main.send(more)
  await settle()
  await own.send(text)
  await own.send('event: tidings.caught-up\ndata: {"rows":150}\nid: 150-P150\n\n')
  await main.row(1_251)
  await settle()
  assert.equal(bridge.connections.length, 3)
  assert.equal(bridge.last.lastEventId, '150-P150')
  await bridge.last.send(more + row(1_251))
  await bridge.last.send('event: tidings.caught-up\ndata: {"rows":1101}\nid: 1251-P1251\n\n')
  await main.row(1_252)
  for (const { received } of tabs) assert.deepEqual(received, Array.from({ length: 1_252 }, (_, index) => index + 1))
})

test('a tab that becomes the leader while it catches up just goes on', async () => {
  const tabs = await openTabs(3)
  tabs[1].page.hang()
  let text = ''
  for (let id = 1; id <= 150; id++) text += row(id)
  await bridge.last.send(text)
  tabs[1].page.hang()
  await tabs[1].page.recover()
  await tabs[1].page.show()
  const own = bridge.last
  tabs[0].client.close()
  await settle()
  assert.equal(tabs[1].client.leading, true)
  assert.deepEqual(bridge.open, [own])
  await own.send(text)
  await own.send('event: tidings.caught-up\ndata: {"rows":150}\nid: 150-P900\n\n')
  await own.row(151)
  // The other tab wasn't where the new leader is, and reads a stream of its own once.
  const extra = bridge.open.find((connection) => connection !== own)
  if (extra) {
    assert.equal(extra.lastEventId, '150-P150')
    await extra.row(151)
    await extra.send('event: tidings.caught-up\ndata: {"rows":1}\nid: 151-P901\n\n')
  }
  await own.row(152)
  const all = Array.from({ length: 152 }, (_, index) => index + 1)
  assert.deepEqual(tabs[1].received, all)
  assert.deepEqual(tabs[2].received, all)
  assert.equal(bridge.open.length, 1)
})

test('a tab that joins receives what comes from then on', async () => {
  const tabs = await openTabs(1)
  await bridge.last.row(1)
  const late = await open()
  await bridge.last.row(2)
  assert.deepEqual(late.received, [2])
  assert.deepEqual(late.notices, [['caught-up', { rows: 0 }]])
  assert.deepEqual(tabs[0].received, [1, 2])
})

test('a tab that joins with a replay gets the rows that the leader has', async () => {
  await openTabs(1)
  await bridge.last.row(1)
  await bridge.last.row(2)
  await bridge.last.row(3)
  const late = await open({ replay: 2 })
  assert.deepEqual(late.received, [2, 3])
  assert.equal(bridge.connections.length, 1)
  await bridge.last.row(4)
  assert.deepEqual(late.received, [2, 3, 4])
})

test('a replay of more rows than the leader has comes from the bridge, and only to that tab', async () => {
  const tabs = await openTabs(2)
  await bridge.last.row(8)
  const late = await open({ replay: 5 })
  const [main, own] = bridge.connections
  assert.equal(own.url.searchParams.get('replay'), '5')
  assert.equal(own.lastEventId, undefined)
  await own.opens({ position: '0-P7' })
  assert.deepEqual(late.received, [])
  assert.equal(own.isAborted, true)
  await main.row(9)
  assert.deepEqual(late.received, [9])
  for (const { received } of tabs) assert.deepEqual(received, [8, 9])
})

test('the replay of the leader is for its page only', async () => {
  const first = await open({ replay: 3 })
  const second = await open()
  const { last } = bridge
  await last.send('retry: 3000\n\nevent: tidings.open\ndata: {"resumed":false}\nid: 0-P0\n\n')
  await last.send(row(1) + row(2) + row(3))
  await last.send('event: tidings.caught-up\ndata: {"rows":3}\nid: 3-P3\n\n')
  assert.deepEqual(first.received, [1, 2, 3])
  assert.deepEqual(second.received, [])
  assert.equal(second.client.status, 'live')
  await last.row(4)
  assert.deepEqual(first.received, [1, 2, 3, 4])
  assert.deepEqual(second.received, [4])
  assert.equal(bridge.connections.length, 1)
})

test('a replay also works for a tab that opens while the leader connects', async () => {
  await open()
  const second = await open({ replay: 3 })
  const [main] = bridge.connections
  await main.opens()
  const own = bridge.last
  assert.notEqual(own, main)
  await own.send('retry: 3000\n\nevent: tidings.open\ndata: {"resumed":false}\nid: 0-P0\n\n')
  await own.send(row(1) + row(2))
  await own.send('event: tidings.caught-up\ndata: {"rows":2}\nid: 2-P2\n\n')
  assert.deepEqual(second.received, [1, 2])
})

test('while the leader connects, the others ask once', async (t) => {
  await open()
  const counter = countQuestions(t)
  for (const lastEventId of ['1-A', '2-A', '3-A', '4-A']) await open({ lastEventId })
  await passes(1_000)
  await settle()
  assert.equal(counter.questions, 4)
})

test('a tab without valid credentials doesn’t try again and again what it can’t', async () => {
  const tabs = await openTabs(1)
  bridge.respond = () => 401
  const second = await open({ lastEventId: '9-X' })
  assert.equal(second.client.status, 'denied')
  assert.equal(bridge.connections.length, 2)
  for (let id = 1; id < 20; id++) await bridge.connections[0].row(id)
  assert.equal(bridge.connections.length, 2)
  assert.equal(tabs[0].client.status, 'live')
})

test('a hidden leader that fails gives way to a visible tab that wakes', async () => {
  const tabs = await openTabs(2)
  await tabs[0].page.hide()
  await tabs[1].page.hide()
  bridge.respond = () => new TypeError('Failed to fetch')
  await bridge.last.breaks()
  await passes(5_000)
  assert.equal(tabs[0].client.status, 'offline')
  assert.equal(tabs[1].client.status, 'offline')
  bridge.respond = () => {}
  await tabs[1].page.show()
  await passes(3_000)
  assert.equal(tabs[1].client.leading, true)
  assert.equal(tabs[0].client.leading, false)
  assert.equal(bridge.open.length, 1)
})

test('a visible leader that fails retries when another tab wakes', async () => {
  const tabs = await openTabs(2)
  bridge.respond = () => new TypeError('Failed to fetch')
  await bridge.last.breaks()
  for (let n = 0; n < 8; n++) await passes(60_000)
  const { length } = bridge.connections
  bridge.respond = () => {}
  await tabs[1].page.show()
  await passes(1_000)
  assert.equal(tabs[0].client.leading, true)
  assert.equal(bridge.connections.length, length + 1)
})

test('tabs that only ask don’t shorten the backoff of a failing leader', async () => {
  await openTabs(4)
  bridge.respond = () => new TypeError('Failed to fetch')
  await bridge.last.breaks()
  for (let n = 0; n < 600; n++) await passes(1_000)
  const { length } = bridge.connections
  for (let n = 0; n < 600; n++) await passes(1_000)
  assert.ok(bridge.connections.length - length <= 10, `${bridge.connections.length - length} attempts in ten minutes`)
})

test('a leader without valid credentials leaves, and follows a tab that has them', async () => {
  const tabs = await openTabs(3)
  bridge.respond = () => 401
  await bridge.last.end()
  await passes(3_000)
  // Each has tried once.
  for (const { client } of tabs) assert.equal(client.status, 'denied')
  const { length } = bridge.connections
  assert.equal(length, 4)
  await passes(10_000_000)
  assert.equal(bridge.connections.length, length)
  // The user logs in again, in a new tab.
  bridge.respond = () => {}
  const fresh = await open()
  assert.equal(fresh.client.leading, true)
  await bridge.last.opens({ position: '0-P9' })
  await settle()
  for (const connection of bridge.open.slice(1)) {
    await connection.opens({ position: '0-P9' })
  }
  const main = bridge.open[0]
  await main.row(1)
  for (const { client, received } of [...tabs, fresh]) {
    assert.equal(client.status, 'live')
    assert.deepEqual(received, [1])
  }
  assert.equal(bridge.open.length, 1)
})

test('reconnect brings a denied tab back', async () => {
  const tabs = await openTabs(2)
  bridge.respond = () => 401
  await bridge.last.end()
  await passes(3_000)
  bridge.respond = () => {}
  tabs[1].client.reconnect()
  await settle()
  assert.equal(tabs[1].client.leading, true)
})

test('where a page may not use locks, it has a stream of its own', async () => {
  const page = new FakePage({ locks: { request: () => Promise.reject(new DOMException('no', 'SecurityError')) } })
  const tab = await open({ page })
  await bridge.last.opens()
  await bridge.last.row(1)
  assert.deepEqual(tab.received, [1])
  await page.fire('pagehide')
  assert.equal(bridge.open.length, 0)
  await page.fire('pageshow')
  assert.equal(bridge.open.length, 1)
})

test('closed tabs hold no channel and no lock, whatever they were doing', async () => {
  const tabs = await openTabs(3)
  tabs[0].page.hang()
  await passes(20_000)
  for (const waiting of [1, 0, 0]) {
    tabs.pop().client.close()
    await settle()
    assert.equal(locks.waiting(NAME), waiting)
  }
  await passes(10_000_000)
  assert.equal(openChannels.size, 0)
  assert.equal(locks.isHeld(NAME), false)
  assert.equal(bridge.open.length, 0)
  assert.equal(bridge.connections.length, 1)
})

test('leaders that come and go at random lose and repeat nothing', async () => {
  // The bridge's rows, of which a connection gets those after its position.
  let rows = 0
  const sent = new Map()
  const positionOf = ({ lastEventId }) => (lastEventId ? Number(lastEventId.split('-')[0]) : 0)
  bridge.respond = (connection, n) => {
    sent.set(connection, positionOf(connection))
    queueMicrotask(() => connection.opens({ position: `${positionOf(connection)}-C${n}` }))
    connection.number = n
  }
  const random = randomNumbers(Number(process.env.TIDINGS_CLIENT_SEED ?? 7))
  async function pump() {
    for (const connection of bridge.open) {
      let text = ''
      for (let id = sent.get(connection) + 1; id <= rows; id++)
        text += row(id, { position: `${id}-C${connection.number}` })
      sent.set(connection, rows)
      if (text) await connection.send(text)
      if (!connection.isLive) {
        connection.isLive = true
        await connection.send(`event: tidings.caught-up\ndata: {}\nid: ${rows}-C${connection.number}\n\n`)
      }
    }
  }
  const watcher = await open()
  await pump()
  let tabs = [await open(), await open(), await open()]
  await pump()
  const begin = new Map(tabs.map((tab) => [tab, 0]))
  for (let round = 0; round < 300; round++) {
    rows += 1 + Math.floor(random() * 20)
    await pump()
    const leader = tabs.find(({ client }) => client.leading)
    const choice = random()
    if (choice < 0.2 && leader) {
      leader.client.close()
      tabs = tabs.filter((tab) => tab !== leader)
      await pump()
      await settle()
    } else if (choice < 0.3 && leader) {
      await leader.page.fire('pagehide')
      rows += 5
      await pump()
      await leader.page.fire('pageshow')
    } else if (choice < 0.4) {
      await bridge.open[0]?.breaks()
      await passes(6_000)
    } else if (choice < 0.5 && leader) {
      leader.page.hang()
      await passes(23_000)
      await passes(3_000)
      await pump()
      await leader.page.recover({ first: random() < 0.5 ? 'messages' : 'locks' })
    }
    if (tabs.length < 4) {
      const tab = await open()
      await pump()
      await settle()
      begin.set(tab, rows)
      tabs.push(tab)
    }
    await pump()
  }
  for (let turn = 0; turn < 20; turn++) {
    await passes(3_000)
    await pump()
  }
  for (const tab of [watcher, ...tabs]) {
    const expected = []
    for (let id = (begin.get(tab) ?? 0) + 1; id <= rows; id++) expected.push(id)
    const received = tab.received.filter((id) => id > (begin.get(tab) ?? 0))
    assert.deepEqual([...received].sort((a, b) => a - b), expected)
  }
})

/** Reproducible random numbers (mulberry32). */
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
