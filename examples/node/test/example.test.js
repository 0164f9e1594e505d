// The example as it is started by `make example-node`, in Chromium.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import pg from 'pg'
import { freePorts, root, Site, startChromium, submit, until, untilIn, untilShown } from './programs.js'

let site, browser, alice

before(async () => {
  site = await Site.start(`exec ${root}/examples/node/run`, await freePorts(3))
  browser = await startChromium()
  alice = await open(browser.defaultBrowserContext(), 'alice')
})

after(async () => {
  await browser?.close()
  await site?.stop()
})

/** Opens the page in a new tab, and logs in unless the browser is logged in. */
async function open(context, name) {
  const page = await context.newPage()
  await page.goto(site.origin)
  await untilIn(page, () => document.title === 'Log in' || document.querySelector('#bell').dataset.status === 'live')
  if (page.url().endsWith('/login.html')) await submit(page, '/login', { name, password: name })
  await untilLive(page)
  return page
}

function untilLive(page) {
  return untilIn(page, () => document.querySelector('#bell')?.dataset.status === 'live')
}

async function send(page, to, text) {
  await submit(page, '/notifications', { to, text })
  await untilLive(page)
}

async function query(text) {
  const client = new pg.Client({ connectionString: site.databaseUrl })
  await client.connect()
  const { rows } = await client.query({ text, rowMode: 'array' })
  await client.end()
  return rows
}

test('a wrong password and an unknown user are refused', async () => {
  const context = await browser.createBrowserContext()
  const page = await context.newPage()
  for (const [name, password] of [['alice', 'bob'], ['carol', 'carol']]) {
    await page.goto(`${site.origin}/login.html`)
    await submit(page, '/login', { name, password })
    assert.equal(page.url(), `${site.origin}/login.html`)
  }
  await context.close()
})

test('what a form causes is in the bell of the next page, once, and is marked as sent', async () => {
  await send(alice, 'alice', 'Hello')
  await untilShown(alice, ['Hello'])
  await until(async () => `${await query('select sent from notification')}` === 'true', 'sent')
  await alice.reload()
  await untilLive(alice)
  await untilShown(alice, ['Hello'])
})

test('all tabs of a user share one stream', async () => {
  const second = await open(browser.defaultBrowserContext())
  await site.untilStreams(1)
  await send(alice, 'alice', 'To both')
  await untilShown(second, ['To both', 'Hello'])
  assert.equal(await second.$eval('#count', (output) => output.value), '1')
  await untilShown(alice, ['To both', 'Hello'])
  await site.untilStreams(1)
  await second.close()
})

test('another user gets what is sent to them, and nothing else', async () => {
  const context = await browser.createBrowserContext()
  const bob = await open(context, 'bob')
  await send(alice, 'alice', 'For Alice')
  await send(alice, 'bob', 'For Bob')
  await untilShown(bob, ['For Bob'])
  await untilShown(alice, ['For Alice', 'To both', 'Hello'])
  await context.close()
})

test('a page whose cookie was lost gets another one', async () => {
  const cookies = await browser.cookies()
  await browser.deleteCookie(...cookies.filter(({ name }) => name === 'tidings_token'))
  await query(`select tidings.disconnect_user('1')`)
  await untilIn(alice, () => document.querySelector('#bell').dataset.status !== 'live')
  await untilLive(alice)
  await query(`insert into notification (user_id, text) values (1, 'Still here')`)
  await untilShown(alice, ['Still here', 'For Alice', 'To both', 'Hello'])
})

test('a page gets no cookie for another user', async () => {
  const status = await alice.evaluate(async () => (await fetch('/stream-cookie?user=2', { method: 'POST' })).status)
  assert.equal(status, 401)
})

test('logging out ends the streams of all tabs, which show the login', async () => {
  const second = await open(browser.defaultBrowserContext())
  await submit(second, '/logout', {})
  await untilIn(alice, () => location.pathname === '/login.html')
  assert.equal(new URL(second.url()).pathname, '/login.html')
  await site.untilStreams(0)
})
