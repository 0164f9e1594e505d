// Programs that the tests start: a PostgreSQL of its own with a command that uses it, and Chromium.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import puppeteer from 'puppeteer-core'

export const root = fileURLToPath(new URL('../../..', import.meta.url))
const PATIENCE = 60_000 // milliseconds

/** Repeats until it is true. */
export async function until(isTrue, what) {
  const end = Date.now() + PATIENCE
  while (!(await isTrue())) {
    if (Date.now() > end) throw new Error(`not within a minute: ${what}`)
    await sleep(50)
  }
}

/** Runs shell commands with a PostgreSQL of its own. */
export class Site {
  output = ''

  /** `ports` are those of the application, the bridge, and its metrics. */
  static async start(commands, ports, options = {}) {
    const site = new Site()
    const [port, bridge, admin] = ports
    site.origin = `http://localhost:${port}`
    site.admin = `http://127.0.0.1:${admin}`
    const script = `echo "database: $DATABASE_URL"\n${commands}`
    site.process = spawn(`${root}/scripts/private-postgres`, ['bash', '-euc', script], {
      ...options,
      env: {
        ...process.env,
        PORT: port,
        TIDINGS_LISTEN: `127.0.0.1:${bridge}`,
        TIDINGS_ADMIN_LISTEN: `127.0.0.1:${admin}`,
        TIDINGS_LOG_FORMAT: 'text',
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    for (const stream of [site.process.stdout, site.process.stderr])
      stream.setEncoding('utf8').on('data', (text) => (site.output += text))
    site.ended = once(site.process, 'exit')
    try {
      site.databaseUrl = await site.says(/database: (\S+)/)
      await site.answers(`${site.admin}/health/ready`)
      await site.answers(site.origin)
    } catch (error) {
      await site.stop()
      throw error
    }
    return site
  }

  async says(pattern) {
    await this.until(() => pattern.test(this.output), pattern)
    return pattern.exec(this.output)[1]
  }

  answers(url) {
    return this.until(() => fetch(url).then(({ ok }) => ok, () => false), url)
  }

  until(isTrue, what) {
    return until(async () => {
      assert.equal(this.process.exitCode, null, this.output)
      return isTrue()
    }, what).catch((error) => {
      throw new Error(`${error.message}\n${this.output}`)
    })
  }

  /** Waits until the bridge has this many streams open. */
  untilStreams(count) {
    return this.until(async () => {
      const metrics = await (await fetch(`${this.admin}/metrics`)).text()
      return Number(/^tidings_connections (\d+)$/m.exec(metrics)[1]) === count
    }, `${count} streams`)
  }

  async stop() {
    this.process.kill()
    await this.ended
  }
}

/** Free ports, below the range from which the system assigns them. Browsers refuse a few lower ones. */
export async function freePorts(count) {
  const ports = new Set()
  while (ports.size < count) {
    const port = 11_000 + Math.floor(Math.random() * 20_000)
    const server = net.createServer().listen(port)
    const isFree = await once(server, 'listening').then(() => true, () => false)
    if (isFree) ports.add(port)
    server.close()
  }
  return [...ports]
}

export function startChromium() {
  assert.ok(process.env.CHROME, 'set CHROME to the program Chromium')
  // Chromium refuses to run as root otherwise. It loads only our own pages.
  const args = ['--disable-dev-shm-usage', ...(process.getuid() === 0 ? ['--no-sandbox'] : [])]
  return puppeteer.launch({ executablePath: process.env.CHROME, headless: true, protocolTimeout: PATIENCE, args })
}

/** Fills in a form and sends it. Returns once the next page is loaded. */
export async function submit(page, action, fields) {
  const send = (form, fields) => {
    for (const [name, value] of Object.entries(fields)) form.elements[name].value = value
    form.requestSubmit()
  }
  // No click, which would need the tab to be in front.
  const sent = page.$eval(`form[action="${action}"]`, send, fields)
  await Promise.all([page.waitForNavigation({ timeout: PATIENCE }), sent])
}

/** Waits until a function returns true in a page, which may be navigating. */
export function untilIn(page, isTrue) {
  return until(() => page.evaluate(isTrue).catch(() => false), `${isTrue} in ${page.url()}`)
}

/** The texts of the notifications that a page shows. */
export function shown(page) {
  return page.$$eval('#notifications li', (items) => items.map((item) => item.textContent))
}

/** Waits until a page shows these notifications and no others. */
export async function untilShown(page, texts) {
  await until(async () => `${await shown(page).catch(() => null)}` === `${texts}`, `shown: ${texts}`)
}
