// 10,000 rows while leaders are killed at random: every tab gets each row once.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { Application, Bridge, Tab, browsers, launch, login, sleep, until } from './support.js'

const ROWS = Number(process.env.TIDINGS_CLIENT_ROWS ?? 10_000)
const BATCH = 25
const TABS = 5
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

for (const [kind, program] of browsers) {
  describe(kind, () => {
    let browser
    let application
    before(async () => {
      browser = await launch(kind, program)
      application = await Application.start(bridge)
    })
    after(async () => {
      await browser?.close()
      application?.stop()
    })

    test(`${ROWS} rows, and leaders that are killed at random`, async (t) => {
      t.diagnostic(`TIDINGS_CLIENT_SEED=${seed}`)
      const random = randomNumbers(seed)
      const user = `crowd${kind}`
      await login(await browser.newPage(), application, user)
      const open = async () => (await Tab.open(browser, application, { user })).isLive()
      let tabs = []
      for (let n = 0; n < TABS; n++) tabs.push(await open())
      const first = Number(await bridge.send(user, 'first'))
      await Promise.all(tabs.map((tab) => tab.receives('first')))
      const witness = new Set(tabs)

      let isSending = true
      const sending = (async () => {
        for (let n = 0; n < ROWS; n += BATCH) {
          const numbers = `generate_series(${n + 1}, ${n + BATCH}) n`
          await bridge.sql(`insert into notifications (user_id, text) select '${user}', n::text from ${numbers}`)
          await sleep(100)
        }
        isSending = false
      })()

      const counts = {}
      const killings = {
        async close(leader) {
          tabs = tabs.filter((tab) => tab !== leader)
          await leader.page.close()
          tabs.push(await open())
        },
        async reload(leader) {
          witness.delete(leader)
          await leader.page.reload()
          await leader.page.waitForFunction(() => window.client)
        },
        async cut() {
          application.wire.cut()
        },
        async swallow() {
          application.wire.swallow()
        },
        ...(kind === 'chrome' && {
          async crash(leader) {
            tabs = tabs.filter((tab) => tab !== leader)
            const session = await leader.page.createCDPSession()
            leader.page.on('error', () => {})
            session.send('Page.crash').catch(() => {})
            await sleep(500)
            tabs.push(await open())
          },
          async freeze(leader) {
            const session = await leader.page.createCDPSession()
            await session.send('Page.setWebLifecycleState', { state: 'frozen' })
            await sleep(1_000 + 3_000 * random())
            await session.send('Page.setWebLifecycleState', { state: 'active' })
          },
          async hang(leader) {
            const recover = await leader.hang()
            await sleep(1_000 + 4_000 * random())
            await recover()
          },
        }),
      }
      const names = Object.keys(killings)
      while (isSending) {
        // Tabs that hang answer late.
        const states = await Promise.all(
          tabs.map((tab) => Promise.race([tab.isLeading().catch(() => false), sleep(500, false)])),
        )
        const leader = tabs[states.indexOf(true)]
        const name = names[Math.floor(random() * names.length)]
        // Some tabs live from the first row to the last.
        if (leader && !(witness.has(leader) && witness.size <= 2 && ['close', 'reload', 'crash'].includes(name))) {
          counts[name] = (counts[name] ?? 0) + 1
          await killings[name](leader)
          if (!tabs.includes(leader)) witness.delete(leader)
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
        const begin = witness.has(tab) ? 0 : expected.indexOf(Math.min(...rows))
        const missing = expected.slice(begin).filter((id) => !unique.has(id))
        t.diagnostic(`${rows.length} rows, ${missing.length} missing, ${rows.length - unique.size} twice`)
        assert.deepEqual(missing, [])
        assert.equal(rows.length, unique.size)
      }
      assert.ok(witness.size > 0)
      await until(() => application.connections === 1)
    })
  })
}
