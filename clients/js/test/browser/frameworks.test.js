// The entry points for frameworks, in real pages.

import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { Application, Bridge, describeBrowsers, login, until } from './support.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

// htmx and Turbo show the texts of rows.
const item = (text) => `<li>${text}</li>`
const append = (text) =>
  `<turbo-stream action="append" target="orders"><template>${item(text)}</template></turbo-stream>`

const bodies = {
  '/react': '<div id="app"></div>',
  '/vue': '<div id="app"></div>',
  '/htmx': '<ul hx-ext="sse" sse-connect="/stream"><div sse-swap="order" hx-swap="beforeend"></div></ul>',
  '/turbo': '<ul id="orders"></ul><a href="/turbo/next">Next</a>',
  '/turbo/next': '<p>The next page</p><ul id="orders"></ul>',
}

const sources = {
  '/htmx.js': `
    import htmx from 'htmx.org'
    import 'htmx-ext-sse'
    import { connect } from 'tidings-client'
    import { asEventSource } from 'tidings-client/eventsource'

    window.client = connect({ user })
    window.htmx = htmx
    htmx.createEventSource = () => asEventSource(client)
  `,
  '/turbo.js': `
    import * as Turbo from '@hotwired/turbo'
    import { connect } from 'tidings-client'
    import { asEventSource } from 'tidings-client/eventsource'

    window.client = connect({ user })
    Turbo.connectStreamSource(asEventSource(client))
  `,
  '/react.js': `
    import { createElement as h, StrictMode, useState } from 'react'
    import { flushSync } from 'react-dom'
    import { createRoot } from 'react-dom/client'
    import { connect } from 'tidings-client'
    import { TidingsProvider, useNotifications, useTidingsEvent, useTidingsStatus } from 'tidings-client/react'

    window.orders = []
    window.renders = 0
    function Bell({ prefix }) {
      window.renders++
      const status = useTidingsStatus()
      const notifications = useNotifications({ limit: 3, topic: null })
      useTidingsEvent('order', ({ text }) => window.orders.push(prefix + text))
      return h('p', { className: status }, notifications.map(({ text }) => text).join(' '))
    }
    function App() {
      const [prefix, setPrefix] = useState('a')
      const [isShown, setShown] = useState(true)
      // With flushSync, effects have run when these return.
      window.setPrefix = (value) => flushSync(() => setPrefix(value))
      window.setShown = (value) => flushSync(() => setShown(value))
      return h(TidingsProvider, { client: window.client }, isShown && h(Bell, { prefix }))
    }
    window.client = connect({ user })
    const reactRoot = createRoot(document.querySelector('#app'))
    reactRoot.render(h(StrictMode, null, h(App)))
    window.unmount = () => reactRoot.unmount()
  `,
  '/vue.js': `
    import { createApp, h, nextTick, ref } from 'vue'
    import { createTidings, useNotifications, useTidings, useTidingsEvent, useTidingsStatus } from 'tidings-client/vue'

    window.orders = []
    const Bell = {
      props: ['prefix'],
      setup(props) {
        window.client = useTidings()
        const status = useTidingsStatus()
        const notifications = useNotifications({ limit: 3, topic: null })
        useTidingsEvent('order', ({ text }) => window.orders.push(props.prefix + text))
        return () => h('p', { class: status.value }, notifications.value.map(({ text }) => text).join(' '))
      },
    }
    const app = createApp({
      setup() {
        const [prefix, isShown] = [ref('a'), ref(true)]
        window.setPrefix = (value) => ((prefix.value = value), nextTick())
        window.setShown = (value) => ((isShown.value = value), nextTick())
        return () => isShown.value && h(Bell, { prefix: prefix.value })
      },
    })
    app.use(createTidings({ user }))
    app.mount('#app')
    window.unmount = () => app.unmount()
  `,
}

let bridge
const scripts = new Map()
before(async () => {
  bridge = await Bridge.start()
  for (const [path, contents] of Object.entries(sources)) {
    const { outputFiles } = await build({
      stdin: { contents, resolveDir: root },
      banner: { js: `const user = new URLSearchParams(location.search).get('user')` },
      bundle: true,
      write: false,
      format: 'esm',
      define: { 'process.env.NODE_ENV': '"development"' },
    })
    scripts.set(path, outputFiles[0].text)
  }
})
after(() => bridge?.stop())

describeBrowsers((kind, browser) => {
  let application
  let context
  let user
  let users = 0
  let errors
  before(async () => {
    application = await Application.start(bridge)
    application.scripts = scripts
    for (const [path, body] of Object.entries(bodies)) {
      const script = `<script type="module" src="/${path.split('/')[1]}.js"></script>`
      application.pages.set(path, `<!doctype html><html><head>${script}</head><body>${body}</body></html>`)
    }
    application.pages.set(
      '/script',
      `<!doctype html><script src="/dist/tidings.min.js"></script><script>
        window.seen = []
        window.client = tidings.connect({ user: new URLSearchParams(location.search).get('user') })
        const source = tidings.asEventSource(client)
        source.onmessage = ({ data }) => seen.push(data)
      </script>`,
    )
  })
  after(() => application?.stop())
  beforeEach(async () => {
    context = await browser().createBrowserContext()
    user = `${kind}${++users}`
    errors = []
    await login(context, application, user)
  })
  afterEach(async () => {
    await context.close()
    await until(() => application.connections === 0)
    assert.deepEqual(errors, [])
  })

  async function open(path) {
    const page = await context.newPage()
    page.on('pageerror', (error) => errors.push(error))
    await page.goto(`${application.origin}${path}?user=${user}`)
    await page.waitForFunction(() => window.client?.status === 'live')
    return page
  }

  const order = (text) => bridge.sql(`select send_notification('${user}', '${text}', 'order')`)

  for (const framework of ['react', 'vue']) {
    test(framework, async () => {
      await bridge.subscribe(user, `team:${user}`)
      const page = await open(`/${framework}`)
      await page.waitForFunction(() => document.querySelector('p.live'))
      // The component shows only rows for the user alone.
      await page.evaluate(() => void (window.other = window.client.once('*')))
      await bridge.sendToTopic(`team:${user}`, 'to the team')
      assert.equal(await page.evaluate(() => window.other.then(({ topic }) => topic)), `team:${user}`)
      for (const text of ['1', '2', '3', '4']) await bridge.send(user, text)
      await page.waitForFunction(() => document.querySelector('p')?.textContent === '4 3 2')
      // A listener sees the component's present values, and is called once.
      await order('5')
      await page.waitForFunction(() => window.orders.length === 1)
      await page.evaluate(() => window.setPrefix('b'))
      await order('6')
      await page.waitForFunction(() => window.orders.length === 2)
      assert.deepEqual(await page.evaluate(() => window.orders), ['a5', 'b6'])
      // The status follows the stream.
      const showsOffline = await page.evaluateHandle(() => ({
        // In an object, so that the handle doesn't wait for it.
        promise: new Promise((resolve) => {
          const observer = new MutationObserver(() => document.querySelector('p.offline') && resolve())
          observer.observe(document, { subtree: true, attributes: true })
        }),
      }))
      application.wire.cut()
      await showsOffline.evaluate(({ promise }) => promise)
      await page.waitForFunction(() => document.querySelector('p.live'))
      // A component that is removed listens no more.
      await page.evaluate(() => window.setShown(false))
      await page.evaluate(() => void (window.next = window.client.once('order')))
      await order('7')
      assert.equal(await page.evaluate(() => window.next.then(({ text }) => text)), '7')
      assert.equal(await page.evaluate(() => window.orders.length), 2)
      await page.evaluate(() => window.unmount())
      const isClosed = await page.evaluate(() => window.client.status === 'closed')
      assert.equal(isClosed, framework === 'vue')
    })
  }

  const items = (page) => page.$$eval('li', (all) => all.map(({ textContent }) => textContent))
  const shows = (page, count) => until(async () => (await items(page)).length === count, `${count} items`)

  test('htmx and its SSE extension', async () => {
    const pages = [await open('/htmx'), await open('/htmx')]
    assert.equal(application.connections, 1)
    await order(item('one'))
    for (const page of pages) await shows(page, 1)
    application.wire.cut()
    await order(item('two'))
    for (const page of pages) {
      await shows(page, 2)
      assert.deepEqual(await items(page), ['one', 'two'])
    }
    // An element that is removed closes its source, but not the client.
    await pages[0].evaluate(() => window.htmx.remove(document.querySelector('ul')))
    await order(item('three'))
    await shows(pages[1], 3)
    assert.deepEqual(await items(pages[0]), [])
    assert.equal(await pages[0].evaluate(() => window.client.status), 'live')
  })

  test('Turbo', async () => {
    const page = await open('/turbo')
    await bridge.send(user, append('one'))
    await shows(page, 1)
    await page.click('a')
    await page.waitForFunction(() => document.querySelector('p'))
    await bridge.send(user, append('two'))
    await shows(page, 1)
    assert.deepEqual(await items(page), ['two'])
    assert.equal(application.connections, 1)
  })

  test('the script for pages without a bundler', async () => {
    const page = await open('/script')
    await bridge.send(user, 'hello')
    await page.waitForFunction(() => window.seen.includes('hello'))
  })
})
