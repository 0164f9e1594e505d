// The steps of docs/recipes/node.md, as written, from an empty folder to Chromium.

import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { after, test } from 'node:test'
import { freePorts, root, Site, startChromium, submit, untilIn, untilShown } from './programs.js'

const page = readFileSync(`${root}/docs/recipes/node.md`, 'utf8')
const steps = /^## From .*?(?=^## )/ms.exec(page)[0]
const { dependencies } = JSON.parse(readFileSync(`${root}/examples/node/package.json`))

const blocks = [...page.matchAll(/^```(\w+)(?: (\S+))?\n(.*?)^```$/gms)]
const files = new Map()
for (const [, , file, text] of blocks) if (file) files.set(file, (files.get(file) ?? '') + text)
const commands = [...steps.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, text]) => text).join('')

test('there are five steps, and they name what the example depends on', () => {
  assert.deepEqual([...steps.matchAll(/^\*\*(\d)\. /gm)].map(([, number]) => number), ['1', '2', '3', '4', '5'])
  assert.deepEqual(/^npm install (.*)$/m.exec(commands)[1].split(' '), Object.keys(dependencies))
  const versions = `with Express ${dependencies.express} and express-session ${dependencies['express-session']}`
  assert.ok(steps.replaceAll('\n', ' ').includes(versions), versions)
})

// Only the downloads are replaced: the packages are the example's, and the program is the one on the PATH.
const downloads = `
  pip() { test "$*" = "install tidings-bridge"; }
  npm() {
    if [ "$1" = install ]; then
      echo '{}' >package.json
      ln -s ${root}/examples/node/node_modules node_modules
    else
      command npm "$@"
    fi
  }
`

test('the steps show on the next page what a form sends, with the client and without', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'tidings-recipe-'))
  t.after(() => rmSync(folder, { recursive: true, force: true }))
  const ports = await freePorts(3)
  const adapt = (text) =>
    text
      .replaceAll(/\b3000\b/g, ports[0])
      .replaceAll(/\b8080\b/g, ports[1])
      .replace('postgresql://localhost/shop', '$DATABASE_URL')
  for (const [file, text] of files) {
    mkdirSync(dirname(join(folder, file)), { recursive: true })
    writeFileSync(join(folder, file), adapt(text))
  }

  const site = await Site.start(downloads + adapt(commands), ports, { cwd: folder })
  t.after(() => site.stop())
  const browser = await startChromium()
  t.after(() => browser.close())
  const tab = await browser.newPage()
  await tab.goto(site.origin)
  await submit(tab, '/login', { name: 'alice' })
  await submit(tab, '/notifications', { text: 'one' })
  await untilShown(tab, ['one'])
  await site.untilStreams(1)

  const plain = await browser.newPage()
  await plain.goto(`${site.origin}/plain.html`)
  await site.untilStreams(2)
  await submit(tab, '/notifications', { text: 'three' })
  await untilIn(plain, () => document.querySelector('#notifications').textContent.endsWith('three'))
  await untilIn(tab, () => document.querySelector('#notifications').textContent.endsWith('three'))
  await plain.close()

  await submit(tab, '/logout', {})
  await site.untilStreams(0)
})
