// A real bridge on a private PostgreSQL, an application in front of it, and real browsers.
//
//   browser ── application ── wire ── bridge ── PostgreSQL
//
// The application serves the pages and forwards /stream on their origin, as a reverse proxy does. The wire is
// a TCP proxy that can lose what passes through it.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHmac, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import puppeteer from 'puppeteer-core'

const root = fileURLToPath(new URL('../..', import.meta.url))
const PATIENCE = 60_000 // milliseconds
const SECRET = 'a secret of the tests, 32 bytes or more'
const LEEWAY = 30 // seconds for which an expired token is still accepted

/** The browsers to test: those whose programs are given. */
const browsers = Object.entries({ chrome: process.env.CHROME, firefox: process.env.FIREFOX }).filter(
  ([, program]) => program,
)
assert.ok(browsers.length, 'set CHROME, FIREFOX or both to the programs of browsers')

/** Tests with each browser. The browsers run side by side, since most of the time they wait. */
export function describeBrowsers(tests) {
  describe('browsers', { concurrency: true }, () => {
    for (const [kind, program] of browsers) {
      describe(kind, { concurrency: false }, () => {
        let browser
        before(async () => {
          browser = await launch(kind, program)
        })
        after(() => browser?.close())
        tests(kind, () => browser)
      })
    }
  })
}

/** Repeats until it is true. */
export async function until(isTrue, what = isTrue) {
  const end = Date.now() + PATIENCE
  while (!(await isTrue())) {
    if (Date.now() > end) throw new Error(`not within a minute: ${what}`)
    await sleep(50)
  }
}

export { sleep }

// --- Programs ------------------------------------------------------------------------------

// The tests' own settings aren't the bridge's.
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('TIDINGS_')))

class Program {
  output = ''

  constructor(program, args, env = {}) {
    this.process = spawn(program, args, { env: { ...environment, ...env }, stdio: ['pipe', 'pipe', 'pipe'] })
    for (const stream of [this.process.stdout, this.process.stderr])
      stream.setEncoding('utf8').on('data', (text) => (this.output += text))
    this.ended = once(this.process, 'exit')
  }

  /** What the output contains between these, once it does. */
  async finds(pattern) {
    await until(() => {
      assert.equal(this.process.exitCode, null, this.output)
      return pattern.test(this.output)
    }, `${pattern} in ${this.output}`)
    return pattern.exec(this.output)[1]
  }

  async stop(signal = 'SIGTERM') {
    this.process.kill(signal)
    await this.ended
  }
}

/** A private PostgreSQL with Tidings' schema, which `tidings dev` starts, and a bridge of its own. */
export class Bridge {
  earlier = Promise.resolve()

  static async start(settings = {}) {
    const bridge = new Bridge()
    const program = process.env.TIDINGS_BRIDGE_BINARY
    assert.ok(program, 'set TIDINGS_BRIDGE_BINARY to the program tidings')
    bridge.folder = mkdtempSync(join(tmpdir(), 'tidings-client-'))
    chmodSync(bridge.folder, 0o755) // as root, PostgreSQL runs as another user
    const anyPort = ['--listen=127.0.0.1:0', '--admin-listen=127.0.0.1:0']
    bridge.dev = new Program(program, ['dev', `--data=${join(bridge.folder, 'data')}`, ...anyPort])
    const psql = await bridge.dev.finds(/\n {2}(.*psql "[^"]+") -c/)
    const [, command, url] = /^(\S+) "([^"]+)"$/.exec(psql)
    bridge.psql = new Program(command, [url, '-qAtX', '-v', 'ON_ERROR_STOP=1'])
    bridge.server = new Program(program, ['serve', ...anyPort], {
      DATABASE_URL: url,
      TIDINGS_JWT_SECRET: SECRET,
      TIDINGS_HEARTBEAT: '1s', // pages that don't say so expect one every 15 s, so that no load ends their streams
      TIDINGS_MAX_CONNECTIONS_PER_ADDRESS: '10000',
      ...settings,
    })
    bridge.port = Number(await bridge.server.finds(/http:\/\/127\.0\.0\.1:(\d+)\/stream/))
    return bridge
  }

  async stop() {
    await this.psql.stop()
    await this.server.stop()
    await this.dev.stop()
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** Runs SQL, one statement after the other. Returns what it prints. */
  sql(text) {
    const result = this.earlier.then(async () => {
      const marker = randomUUID()
      const { length } = this.psql.output
      this.psql.process.stdin.write(`${text};\n\\echo ${marker}\n`)
      await this.psql.finds(new RegExp(`(${marker})`))
      return this.psql.output.slice(length, this.psql.output.indexOf(marker)).trim()
    })
    this.earlier = result.catch(() => {})
    return result
  }

  /** Opens a stream of the user's that only receives, until it is aborted. */
  async connect(user) {
    const controller = new AbortController()
    const headers = { Authorization: `Bearer ${signToken(user, 3_600)}` }
    const response = await fetch(`http://127.0.0.1:${this.port}/stream`, { headers, signal: controller.signal })
    assert.equal(response.status, 200)
    response.body.pipeTo(new WritableStream()).catch(() => {})
    return controller
  }

  send(user, text) {
    return this.sql(`select send_notification('${user}', '${text}')`)
  }

  sendToTopic(topic, text) {
    return this.sql(`select send_to_topic('${topic}', '${text}')`)
  }

  async subscribe(user, ...topics) {
    for (const topic of topics) await this.sql(`select subscribe('${user}', '${topic}')`)
  }
}

/** Signs a token (HS256). */
function signToken(user, seconds) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const exp = Math.floor(Date.now() / 1_000) + seconds
  const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: user, exp })}`
  return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`
}

/** A TCP proxy that can lose bytes, as a network does that has changed without notice. */
class Wire {
  static async to(port) {
    const wire = new Wire()
    wire.connections = new Set()
    wire.server = net.createServer((near) => {
      if (wire.isRefusing) return near.destroy()
      const far = net.connect(port, '127.0.0.1')
      const connection = { near, far, isSilent: false }
      wire.connections.add(connection)
      far.on('data', (bytes) => connection.isSilent || near.write(bytes))
      near.on('data', (bytes) => connection.isSilent || far.write(bytes))
      for (const [one, other] of [
        [near, far],
        [far, near],
      ]) {
        one.on('error', () => {})
        one.on('close', () => {
          wire.connections.delete(connection)
          // What is lost tells nobody that it is.
          if (!connection.isSilent || one === near) other.destroy()
        })
      }
    })
    wire.server.listen(0, '127.0.0.1')
    await once(wire.server, 'listening')
    wire.port = wire.server.address().port
    return wire
  }

  /** Loses everything on the present connections from now on. */
  swallow() {
    for (const connection of this.connections) connection.isSilent = true
  }

  /** Cuts all connections, and new ones at once. */
  refuse(isRefusing) {
    this.isRefusing = isRefusing
    this.cut()
  }

  cut() {
    for (const { near, far } of this.connections) {
      near.destroy()
      far.destroy()
    }
  }

  stop() {
    this.cut()
    this.server.close()
  }
}

/** An application with users, whose pages have a client. */
export class Application {
  static async start(bridge) {
    const application = new Application()
    application.bridge = bridge
    application.wire = await Wire.to(bridge.port)
    application.scripts = new Map()
    application.pages = new Map()
    for (const name of ['/page', '/away'])
      application.pages.set(name, readFileSync(new URL(`pages${name}.html`, import.meta.url)))
    application.refreshes = 0
    application.streams = 0
    application.secondsOfTokens = 3_600
    application.server = http.createServer((request, response) => application.answer(request, response))
    application.server.listen(0, '127.0.0.1')
    await once(application.server, 'listening')
    application.origin = `http://127.0.0.1:${application.server.address().port}`
    return application
  }

  stop() {
    this.wire.stop()
    this.server.closeAllConnections()
    this.server.close()
  }

  /** A session is the cookie `user`. */
  tokenFor(user) {
    return `tidings_token=${signToken(user, this.secondsOfTokens)}; Path=/stream; HttpOnly; SameSite=Strict`
  }

  async answer(request, response) {
    const { pathname, searchParams } = new URL(request.url, this.origin)
    const session = /(?:^|; )user=(\w+)/.exec(request.headers.cookie ?? '')?.[1]
    if (pathname === '/stream') {
      this.forward(request, response)
    } else if (pathname === '/login') {
      const user = searchParams.get('user')
      response.setHeader('Set-Cookie', [`user=${user}; Path=/`, this.tokenFor(user)])
      response.setHeader('Content-Type', 'text/html')
      response.end('<!doctype html><title>Logged in</title>')
    } else if (pathname === '/refresh') {
      this.refreshes++
      this.secondsOfTokens = 3_600
      // The page names its user, so that no page gets another user's stream.
      const isUser = session && session === searchParams.get('user')
      if (isUser) response.setHeader('Set-Cookie', this.tokenFor(session))
      response.statusCode = isUser ? 204 : 401
      response.end()
    } else if (pathname === '/hang') {
      this.hanging(() => response.end())
    } else if (pathname === '/order' && request.method === 'POST') {
      await this.bridge.send(session, 'Thank you for your order')
      response.writeHead(303, { Location: `/page${new URL(request.url, this.origin).search}` }).end()
    } else if (pathname.startsWith('/dist/')) {
      const file = join(root, pathname)
      response.statusCode = existsSync(file) ? 200 : 404
      response.setHeader('Content-Type', 'text/javascript')
      response.end(existsSync(file) ? readFileSync(file) : undefined)
    } else if (this.scripts.has(pathname)) {
      response.setHeader('Content-Type', 'text/javascript')
      response.end(this.scripts.get(pathname))
    } else if (this.pages.has(pathname)) {
      response.setHeader('Content-Type', 'text/html')
      response.end(this.pages.get(pathname))
    } else {
      response.statusCode = 404
      response.end()
    }
  }

  /** Resolves when a page hangs, to the function that lets it go on. */
  hangs() {
    return new Promise((resolve) => (this.hanging = resolve))
  }

  forward(request, response) {
    const { method, headers, url } = request
    const upstream = http.request({ port: this.wire.port, host: '127.0.0.1', path: url, method, headers, agent: false })
    this.streams++
    upstream.on('response', (answer) => {
      response.writeHead(answer.statusCode, answer.headers)
      response.flushHeaders()
      answer.pipe(response)
      answer.on('error', () => response.destroy())
      answer.on('aborted', () => response.destroy())
    })
    upstream.on('error', () => response.destroy())
    response.on('close', () => upstream.destroy())
    upstream.end()
  }

  /** How many streams are open. */
  get connections() {
    return this.wire.connections.size
  }
}

// --- Browsers ------------------------------------------------------------------------------

async function launch(kind, program) {
  const options = { executablePath: program, headless: true, protocolTimeout: PATIENCE }
  if (kind === 'firefox') {
    const extraPrefsFirefox = {
      // Tabs of one site in processes of their own, as far as possible.
      'dom.ipc.processCount.webIsolated': 8,
      'fission.webContentIsolationStrategy': 1,
    }
    return puppeteer.launch({ ...options, browser: 'firefox', extraPrefsFirefox })
  }
  const isRoot = process.getuid?.() === 0
  return puppeteer.launch({ ...options, args: ['--disable-dev-shm-usage', ...(isRoot ? ['--no-sandbox'] : [])] })
}

/** A tab whose page has a client (pages/page.html). */
export class Tab {
  static async open(browser, application, options = {}) {
    const tab = new Tab()
    tab.application = application
    tab.page = await browser.newPage()
    tab.address = `${application.origin}/page?${new URLSearchParams(options)}`
    await tab.page.goto(tab.address)
    await tab.page.waitForFunction(() => window.client)
    return tab
  }

  evaluate(...args) {
    return this.page.evaluate(...args)
  }

  status() {
    return this.evaluate(() => window.client.status)
  }

  isLeading() {
    return this.evaluate(() => window.client.leading)
  }

  /** The texts that this page has received. */
  received() {
    return this.evaluate(() => window.received)
  }

  async isLive() {
    await until(async () => (await this.status()) === 'live', 'live')
    return this
  }

  async receives(...texts) {
    await until(async () => {
      const received = await this.received()
      return texts.every((text) => received.includes(text))
    }, texts)
  }

  async setFrozen(isFrozen) {
    this.session ??= await this.page.createCDPSession()
    await this.session.send('Page.setWebLifecycleState', { state: isFrozen ? 'frozen' : 'active' })
  }

  /** Resolves when the page has crashed. */
  async crash() {
    const session = await this.page.createCDPSession()
    const crashed = once(this.page, 'error')
    session.send('Page.crash').catch(() => {})
    await crashed
  }

  /** The page hangs: none of its scripts goes on until the function that this returns is called. */
  async hang() {
    const begins = this.application.hangs()
    const ends = this.evaluate(() => {
      const request = new XMLHttpRequest()
      request.open('GET', '/hang', false) // synchronous
      request.send()
    })
    const recover = await begins
    return () => {
      recover()
      return ends
    }
  }
}

/** Logs in with a tab of its own. */
export async function login(browser, application, user) {
  const page = await browser.newPage()
  await page.goto(`${application.origin}/login?user=${user}`)
  await page.close()
}

export { LEEWAY }
