// The entry points for frameworks, in real pages.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { Application, Bridge, browsers, launch, login, until } from './support.js'

const root = fileURLToPath(new URL('../..', import.meta.url))

const sources = {
  '/react.js': `
    import { createElement as h, StrictMode, useState } from 'react'
    import { createRoot } from 'react-dom/client'
    import { connect } from 'tidings-client'
    import { TidingsProvider, useNotifications, useTidingsEvent, useTidingsStatus } from 'tidings-client/react'

    window.orders = []
    window.renders = 0
    function Bell({ prefix }) {
      window.renders++
      const status = useTidingsStatus()
      const notifications = useNotifications({ limit: 3 })
      useTidingsEvent('order', ({ text }) => window.orders.push(prefix + text))
      return h('p', { className: status }, notifications.map(({ text }) => text).join(' '))
    }
    function App() {
      const [prefix, setPrefix] = useState('a')
      const [isShown, setShown] = useState(true)
      Object.assign(window, { setPrefix, setShown })
      return h(TidingsProvider, { client: window.client }, isShown && h(Bell, { prefix }))
    }
    window.client = connect({ user: window.user })
    const reactRoot = createRoot(document.querySelector('#app'))
    reactRoot.render(h(StrictMode, null, h(App)))
    window.unmount = () => reactRoot.unmount()
  `,
  '/vue.js': `
    import { createApp, h, ref } from 'vue'
    import { createTidings, useNotifications, useTidings, useTidingsEvent, useTidingsStatus } from 'tidings-client/vue'

    window.orders = []
    const Bell = {
      props: ['prefix'],
      setup(props) {
        window.client = useTidings()
        const status = useTidingsStatus()
        const notifications = useNotifications({ limit: 3 })
        useTidingsEvent('order', ({ text }) => window.orders.push(props.prefix + text))
        return () => h('p', { class: status.value }, notifications.value.map(({ text }) => text).join(' '))
      },
    }
    const app = createApp({
      setup() {
        const [prefix, isShown] = [ref('a'), ref(true)]
        window.setPrefix = (value) => (prefix.value = value)
        window.setShown = (value) => (isShown.value = value)
        return () => isShown.value && h(Bell, { prefix: prefix.value })
      },
    })
    app.use(createTidings({ user: window.user }))
    app.mount('#app')
    window.unmount = () => app.unmount()
  `,
}

let bridge
let application
before(async () => {
  bridge = await Bridge.start()
  application = await Application.start(bridge)
  application.scripts = new Map()
  for (const [path, contents] of Object.entries(sources)) {
    const { outputFiles } = await build({
      stdin: { contents, resolveDir: root },
      bundle: true,
      write: false,
      format: 'esm',
      define: { 'process.env.NODE_ENV': '"development"' },
    })
    application.scripts.set(path, outputFiles[0].text)
    const html = `<!doctype html><div id="app"></div><script type="module">
      window.user = new URLSearchParams(location.search).get('user')
      await import('${path}')
    </script>`
    application.pages.set(path.replace('.js', ''), html)
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
after(async () => {
  application?.stop()
  await bridge?.stop()
})

for (const [kind, program] of browsers) {
  describe(kind, () => {
    let browser
    before(async () => {
      browser = await launch(kind, program)
    })
    after(() => browser?.close())

    for (const framework of ['react', 'vue']) {
      test(framework, async () => {
        const user = `${framework}${kind}`
        const page = await browser.newPage()
        const errors = []
        page.on('pageerror', (error) => errors.push(error))
        await login(page, application, user)
        await page.goto(`${application.origin}/${framework}?user=${user}`)
        await page.waitForFunction(() => document.querySelector('p.live'))
        for (const text of ['1', '2', '3', '4']) await bridge.send(user, text)
        await page.waitForFunction(() => document.querySelector('p')?.textContent === '4 3 2')
        // A listener sees the component's present values, and is called once.
        await bridge.sql(`select send_notification('${user}', '5', 'order')`)
        await page.waitForFunction(() => window.orders.length === 1)
        await page.evaluate(() => window.setPrefix('b'))
        await bridge.sql(`select send_notification('${user}', '6', 'order')`)
        await page.waitForFunction(() => window.orders.length === 2)
        assert.deepEqual(await page.evaluate(() => window.orders), ['a5', 'b6'])
        // The status follows the stream.
        application.wire.cut()
        await page.waitForFunction(() => document.querySelector('p.offline'))
        await page.waitForFunction(() => document.querySelector('p.live'))
        // A component that is removed listens no more.
        await page.evaluate(() => window.setShown(false))
        const next = page.evaluate(() => window.client.once('order').then(({ text }) => text))
        await bridge.sql(`select send_notification('${user}', '7', 'order')`)
        assert.equal(await next, '7')
        assert.equal(await page.evaluate(() => window.orders.length), 2)
        await page.evaluate(() => window.unmount())
        const isClosed = await page.evaluate(() => window.client.status === 'closed')
        assert.equal(isClosed, framework === 'vue')
        assert.deepEqual(errors, [])
        await page.close()
        await until(() => application.connections === 0)
      })
    }

    test('the script for pages without a bundler', async () => {
      const user = `script${kind}`
      const page = await browser.newPage()
      await login(page, application, user)
      await page.goto(`${application.origin}/script?user=${user}`)
      await page.waitForFunction(() => window.client.status === 'live')
      await bridge.send(user, 'hello')
      await page.waitForFunction(() => window.seen.includes('hello'))
      await page.close()
    })
  })
}
