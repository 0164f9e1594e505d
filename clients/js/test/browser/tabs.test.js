import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, test } from 'node:test'
import { Application, Bridge, LEEWAY, Tab, describeBrowsers, login, sleep, until } from './support.js'

let bridge
before(async () => {
  bridge = await Bridge.start()
})
after(() => bridge?.stop())

describeBrowsers((kind, browser) => {
  let application
  let context
  let user
  let users = 0
  /** A user that no other test has. */
  const newUser = () => `${kind}${++users}`

  beforeEach(async () => {
    application = await Application.start(bridge)
    context = await browser().createBrowserContext()
    user = newUser()
    await login(context, application, user)
  })
  afterEach(async () => {
    await context.close()
    application.stop()
  })

  const open = (options) => Tab.open(context, application, { user, refresh: 1, ...options })
  const send = (text) => bridge.send(user, text)

  async function openTabs(count, options) {
    const tabs = []
    for (let n = 0; n < count; n++) tabs.push(await (await open(options)).isLive())
    return tabs
  }

  /** Opens tabs, and separates the leader from the others. */
  async function openTabsOfALeader(count, options) {
    const tabs = await openTabs(count, options)
    let isLeading
    await until(async () => {
      isLeading = await Promise.all(tabs.map((tab) => tab.isLeading()))
      return isLeading.filter(Boolean).length === 1
    }, 'one leader')
    const leader = tabs[isLeading.indexOf(true)]
    return { leader, others: tabs.filter((tab) => tab !== leader) }
  }

  async function allReceive(tabs, ...texts) {
    await Promise.all(tabs.map((tab) => tab.receives(...texts)))
  }

  async function haveExactly(tabs, ...texts) {
    await allReceive(tabs, ...texts)
    for (const tab of tabs) assert.deepEqual(await tab.received(), texts)
  }

  test('eight tabs share one connection', async () => {
    const tabs = await openTabs(8)
    await until(() => application.connections === 1)
    await send('one')
    await send('two')
    await haveExactly(tabs, 'one', 'two')
  })

  test('the leader is closed', async () => {
    const { leader, others } = await openTabsOfALeader(3)
    await send('before')
    await haveExactly([leader, ...others], 'before')
    await leader.page.close()
    await send('after')
    await haveExactly(others, 'before', 'after')
    await until(() => application.connections === 1)
  })

  test('the leader is reloaded', async () => {
    const { leader, others } = await openTabsOfALeader(3)
    await send('before')
    await haveExactly([leader, ...others], 'before')
    await sleep(2_500) // the row has been on the page for long enough
    const reloaded = leader.page.reload()
    await send('meanwhile')
    await reloaded
    await send('after')
    await haveExactly(others, 'before', 'meanwhile', 'after')
    await haveExactly([leader], 'meanwhile', 'after')
    await until(() => application.connections === 1)
  })

  test('the credentials expire while nobody is connected', async () => {
    const [tab] = await openTabs(1)
    await send('before')
    await tab.receives('before')
    application.secondsOfTokens = -LEEWAY - 10
    await login(context, application, user)
    application.wire.cut()
    await send('after')
    await haveExactly([tab], 'before', 'after')
    assert.equal(application.refreshes, 1)
    assert.ok(!(await tab.evaluate(() => window.statuses)).includes('denied'))
  })

  test('the credentials are renewed before they expire', async () => {
    application.secondsOfTokens = 6 - LEEWAY
    await login(context, application, user)
    const [tab] = await openTabs(1)
    await until(() => application.refreshes >= 1)
    await until(() => application.streams >= 2)
    await send('after')
    await tab.receives('after')
    assert.ok(!(await tab.evaluate(() => window.statuses)).includes('offline'))
  })

  test('the user logs out', async () => {
    const tabs = await openTabs(2)
    application.secondsOfTokens = -LEEWAY - 10
    await login(context, application, 'nobody')
    await bridge.sql(`select disconnect_user('${user}')`)
    for (const tab of tabs) await until(async () => (await tab.status()) === 'denied', 'denied')
    await until(() => application.connections === 0)
  })

  test('another user logs in: their pages have streams of their own', async () => {
    const [alices] = await openTabs(1)
    const other = newUser()
    await login(context, application, other)
    const others = await (await open({ user: other })).isLive()
    await until(() => application.connections === 2)
    await bridge.send(other, 'for the other')
    await send('for the first')
    await haveExactly([others], 'for the other')
    await haveExactly([alices], 'for the first')
  })

  test('another user has logged in when a page connects again: it shows none of their rows', async () => {
    const [alices] = await openTabs(1)
    const other = newUser()
    await login(context, application, other)
    await bridge.send(other, 'for the other')
    application.wire.cut()
    await until(async () => (await alices.status()) === 'denied', 'denied')
    assert.deepEqual(await alices.received(), [])
  })

  test('a proxy swallows what passes through it', async () => {
    const tabs = await openTabs(3, { heartbeat: 1_000 })
    application.wire.swallow()
    await send('swallowed')
    await haveExactly(tabs, 'swallowed')
    assert.ok(application.streams >= 2)
  })

  test('the connection is cut, and another device receives the rows of the meantime', async () => {
    const tabs = await openTabs(3)
    const device = await bridge.connect(user)
    await send('before')
    await haveExactly(tabs, 'before')
    application.wire.refuse(true)
    await send('meanwhile')
    const isSent = `select bool_and(sent_at is not null) from notifications where user_id = '${user}'`
    await until(async () => (await bridge.sql(isSent)) === 't', 'sent to the other device')
    application.wire.refuse(false)
    await send('after')
    await haveExactly(tabs, 'before', 'meanwhile', 'after')
    device.abort()
  })

  test('back and forward', async (t) => {
    const [tab, watcher] = await openTabs(2)
    await send('before')
    await haveExactly([tab, watcher], 'before')
    await sleep(2_500)
    await tab.page.goto(`${application.origin}/away`)
    await send('away')
    await watcher.receives('away')
    await tab.page.goBack()
    await tab.page.waitForFunction(() => window.client)
    await send('after')
    await allReceive([tab, watcher], 'away', 'after')
    const received = await tab.received()
    const isRestored = received.includes('before')
    t.diagnostic(`restored from the back/forward cache: ${isRestored}`)
    assert.deepEqual(received, isRestored ? ['before', 'away', 'after'] : ['away', 'after'])
    assert.deepEqual(await watcher.received(), ['before', 'away', 'after'])
    await until(() => application.connections === 1)
  })

  test('a form is submitted, and its notification is on the next page', async () => {
    for (const [others, orders] of [
      [0, 2],
      [1, 1],
    ]) {
      user = newUser()
      await login(context, application, user)
      const watchers = await openTabs(others)
      const [tab] = await openTabs(1)
      for (let n = 1; n <= orders; n++) {
        await Promise.all([tab.page.waitForNavigation(), tab.page.click('button')])
        await tab.page.waitForFunction(() => window.client)
        await tab.receives('Thank you for your order')
        // Long enough on this page that the next one doesn't show it again.
        await sleep(2_200)
        assert.equal((await tab.received()).length, 1, `${n}`)
      }
      for (const watcher of watchers) assert.equal((await watcher.received()).length, orders)
      for (const { page } of [tab, ...watchers]) await page.close()
    }
  })

  test('a page without sharing has a stream of its own', async () => {
    const tabs = await openTabs(2, { share: 'false' })
    await until(() => application.connections === 2)
    await send('both')
    await haveExactly(tabs, 'both')
  })

  test('a replay is for the page that asked for it', async () => {
    const [first] = await openTabs(1)
    for (const text of ['a', 'b', 'c']) await send(text)
    await first.receives('a', 'b', 'c')
    const second = await open({ replay: 2 })
    await second.receives('b', 'c')
    await first.page.close()
    const third = await open({ replay: 3 })
    await third.receives('a', 'b', 'c')
    await send('d')
    await haveExactly([second], 'b', 'c', 'd')
    await haveExactly([third], 'a', 'b', 'c', 'd')
  })

  // Firefox's tabs can't be frozen, crashed or taken offline from outside, and one that hangs stops the others.
  if (kind !== 'chrome') return

  test('a visible tab replaces a leader that hangs', async () => {
    const { leader, others } = await openTabsOfALeader(3, { heartbeat: 1_000 })
    await others[0].page.bringToFront()
    const recover = await leader.hang()
    await send('meanwhile')
    await haveExactly(others, 'meanwhile')
    await recover()
    await send('after')
    await haveExactly([leader, ...others], 'meanwhile', 'after')
    assert.equal(await leader.isLeading(), false)
    await until(() => application.connections === 1)
  })

  test('the leader is frozen, and thaws', async () => {
    const { leader, others } = await openTabsOfALeader(3)
    await leader.setFrozen(true)
    await send('meanwhile')
    await haveExactly(others, 'meanwhile')
    await leader.setFrozen(false)
    await send('after')
    await haveExactly([leader, ...others], 'meanwhile', 'after')
    await until(() => application.connections === 1)
  })

  test('the leader crashes', async () => {
    const { leader, others } = await openTabsOfALeader(3)
    await leader.crash()
    await send('after')
    await haveExactly(others, 'after')
    await until(() => application.connections === 1)
  })

  test('the network goes away and comes back', async () => {
    const tabs = await openTabs(2)
    const sessions = await Promise.all(tabs.map(({ page }) => page.createCDPSession()))
    const setOffline = (offline) => {
      const conditions = { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 }
      return Promise.all(sessions.map((session) => session.send('Network.emulateNetworkConditions', conditions)))
    }
    await Promise.all(sessions.map((session) => session.send('Network.enable')))
    await setOffline(true)
    application.wire.cut()
    await send('offline')
    await until(async () => (await tabs[0].status()) === 'offline', 'offline')
    await setOffline(false)
    await haveExactly(tabs, 'offline')
  })
})
