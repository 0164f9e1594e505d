// Pages that choose among the user's topics, with a real bridge.

import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, test } from 'node:test'
import { Application, Bridge, Tab, describeBrowsers, login, until } from './support.js'

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
  let topics

  beforeEach(async () => {
    application = await Application.start(bridge)
    context = await browser().createBrowserContext()
    user = `${kind}${++users}`
    topics = { red: `red:${user}`, blue: `blue:${user}`, closed: `closed:${user}` }
    await bridge.subscribe(user, topics.red, topics.blue)
    await login(context, application, user)
  })
  afterEach(async () => {
    await context.close()
    application.stop()
  })

  const open = async (...names) => (await Tab.open(context, application, { user, topics: names })).isLive()
  const toldRefused = (tab, ...names) =>
    until(async () => String(await tab.evaluate(() => window.refused)) === String(names), `refused: ${names}`)

  test('tabs with the same topics share a stream, and each receives its own topics', async () => {
    const { red, blue } = topics
    const tabs = [await open(red), await open(red), await open(red, blue), await open(blue, red)]
    await until(() => application.connections === 2)
    await bridge.sendToTopic(blue, 'blue')
    await bridge.sendToTopic(red, 'red')
    await bridge.send(user, 'own')
    for (const [n, tab] of tabs.entries()) {
      await tab.receives('red', 'own')
      assert.deepEqual(await tab.received(), n < 2 ? ['red', 'own'] : ['blue', 'red', 'own'])
    }
    assert.equal(application.connections, 2)
  })

  test('all tabs are told what is refused, and receive nothing of it', async () => {
    const { red, closed } = topics
    const tabs = [await open(red, closed)]
    await toldRefused(tabs[0], closed)
    tabs.push(await open(closed, red))
    await toldRefused(tabs[1], closed)
    await until(() => application.connections === 1)
    await bridge.sendToTopic(closed, 'closed')
    await bridge.sendToTopic(red, 'red')
    for (const tab of tabs) {
      await tab.receives('red')
      assert.deepEqual(await tab.received(), ['red'])
    }
  })

  test('who leaves a topic receives no more of it, and who joins it does, in open pages', async () => {
    const { red, blue, closed } = topics
    const tab = await open(red, closed)
    await bridge.sendToTopic(red, 'before')
    await tab.receives('before')
    await bridge.sql(`select unsubscribe('${user}', '${red}')`)
    await bridge.sendToTopic(red, 'after leaving')
    await bridge.sendToTopic(closed, 'before joining')
    await bridge.subscribe(user, closed)
    await bridge.sendToTopic(closed, 'after joining')
    await bridge.sendToTopic(blue, 'not chosen')
    await tab.receives('after joining')
    await bridge.send(user, 'own')
    await tab.receives('own')
    assert.deepEqual(await tab.received(), ['before', 'after joining', 'own'])
  })

  test('a page with the same topics continues where the page before was left', async () => {
    const { red } = topics
    const tab = await open(red)
    await bridge.sendToTopic(red, 'one')
    await tab.receives('one')
    await tab.page.goto(`${application.origin}/away`)
    await until(() => application.connections === 0)
    await bridge.sendToTopic(red, 'two')
    await tab.page.goto(tab.address)
    await tab.page.waitForFunction(() => window.client)
    await tab.receives('two')
    const received = await tab.received()
    // The first one again, unless two seconds passed before the page was left.
    assert.deepEqual(
      received.filter((text) => text !== 'one'),
      ['two'],
    )
  })
})
