// Opens the streams listed on standard input, with the client named by the first argument, and
// prints each event as a line of JSON.

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { clients } from './streams.js'

const require = createRequire(import.meta.url)
const emit = (line) => process.stdout.write(JSON.stringify(line) + '\n')

async function load(name) {
  const module = await import(name).catch(() => require(name))
  // Some libraries export the constructor itself as the default.
  return typeof module.default === 'function' && !module.EventSource ? module.default : module.default?.EventSource ? module.default : module
}

process.on('uncaughtException', (error) => emit({ error: String(error?.stack ?? error) }))
process.on('unhandledRejection', (error) => emit({ error: String(error?.stack ?? error) }))

const lines = createInterface({ input: process.stdin })
lines.once('line', (line) => {
  const open = clients[process.argv[2]]
  for (const stream of JSON.parse(line)) open(stream, emit, load)
})
lines.once('close', () => process.exit(0))
