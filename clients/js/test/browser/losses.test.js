// 10,000 rows while leaders are killed at random: every tab gets each row once.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { Application, Bridge, Tab, describeBrowsers, login, sleep, until } from './support.js'

const ROWS = Number(process.env.TIDINGS_CLIENT_ROWS ?? 10_000)
const BATCH = 25
const TABS = 5
const WITNESSES = 2
const seed = Number(process.env.TIDINGS_CLIENT_SEED ?? Date.now() % 1e6)

/** Reproducible random numbers (mulberry32). */
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

let bridge
before(async () => {
  bridge = await Bridge.start()
})
after(() => bridge?.stop())

describeBrowsers((kind, browser) => {
  let application
  before(async () => {
    application = await Application.start(bridge)
  })
  after(() => application?.stop())

  test(`${ROWS} rows, and leaders that are killed at random`, async (t) => {
    t.diagnostic(`TIDINGS_CLIENT_SEED=${seed}`)
    const random = randomNumbers(seed)
    const user = `crowd${kind}`
    await login(browser(), application, user)
    const open = async () => (await Tab.open(browser(), application, { user, heartbeat: 1_000 })).isLive()
    let tabs = []
    for (let n = 0; n < TABS; n++) tabs.push(await open())
    // Some tabs live from the first row to the last.
    const witnesses = tabs.slice(0, WITNESSES)
    const first = Number(await bridge.send(user, 'first'))
    await Promise.all(tabs.map((tab) => tab.receives('first')))

    let isSending = true
    const sending = (async () => {
      for (let n = 0; n < ROWS; n += BATCH) {
        const numbers = `generate_series(${n + 1}, ${n + BATCH}) n`
        await bridge.sql(`insert into notifications (user_id, text) select '${user}', n::text from ${numbers}`)
        await sleep(100)
      }
    })().finally(() => (isSending = false))

    const fatal = {
      close: (leader) => leader.page.close(),
      async reload(leader) {
        await leader.page.reload()
        await leader.page.waitForFunction(() => window.client)
      },
      ...(kind === 'chrome' && { crash: (leader) => leader.crash() }),
    }
    const others = {
      cut: () => application.wire.cut(),
      swallow: () => application.wire.swallow(),
      handOver: (leader) => leader.evaluate(() => window.client.reconnect()),
      ...(kind === 'chrome' && {
        async freeze(leader) {
          await leader.setFrozen(true)
          await sleep(1_000 + 3_000 * random())
          await leader.setFrozen(false)
        },
        async hang(leader) {
          const recover = await leader.hang()
          await sleep(1_000 + 4_000 * random())
          await recover()
        },
      }),
    }
    const counts = {}
    while (isSending) {
      const leader = await leaderOf(tabs)
      if (leader) {
        const choices = { ...others, ...(!witnesses.includes(leader) && fatal) }
        const names = Object.keys(choices)
        const name = names[Math.floor(random() * names.length)]
        counts[name] = (counts[name] ?? 0) + 1
        await choices[name](leader)
        if (name === 'close' || name === 'crash') {
          tabs = tabs.filter((tab) => tab !== leader)
          tabs.push(await open())
        }
      }
      await sleep(1_500 * random())
    }
    await sending
    t.diagnostic(JSON.stringify(counts))

    await bridge.send(user, 'last')
    await Promise.all(tabs.map((tab) => tab.receives('last')))
    const query = `select id from notifications where user_id = '${user}' and id > ${first} order by id`
    const expected = (await bridge.sql(query)).split('\n').map(Number)
    assert.equal(expected.length, ROWS + 1)
    for (const tab of tabs) {
      const rows = (await tab.evaluate(() => window.rows)).filter((id) => id !== first)
      const unique = new Set(rows)
      const begin = witnesses.includes(tab) ? 0 : expected.indexOf(Math.min(...rows))
      const missing = expected.slice(begin).filter((id) => !unique.has(id))
      t.diagnostic(`${rows.length} rows, ${missing.length} missing, ${rows.length - unique.size} twice`)
      assert.deepEqual(missing, [])
      assert.equal(rows.length, unique.size)
    }
    await until(() => application.connections === 1)
  })
})

async function leaderOf(tabs) {
  // Tabs that hang answer late.
  const answers = tabs.map((tab) => Promise.race([tab.isLeading(), sleep(500, false)]))
  return tabs[(await Promise.all(answers)).indexOf(true)]
}
