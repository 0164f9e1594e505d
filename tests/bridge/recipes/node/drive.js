// Does with the code of the page what it is told, a line at a time.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import pg from 'pg'
import * as shop from './shop.js'

const client = new pg.Client(process.env.DATABASE_URL)
await client.connect()
await client.query(readFileSync('orders.sql', 'utf8'))
await client.end()

const done = () => 'done'
const commands = {
  order: (customer, item) =>
    shop.placeOrder(customer, item).catch((error) => `refused: ${error.message}`),
  announce: (customers, text) => shop.announce(customers.split(','), text).then(done),
  token: (user) => shop.streamToken(user),
  ticket: (user) => shop.streamTicket(user),
  logout: (user) => shop.endStreams(user).then(done),
}

const require = createRequire(import.meta.url)
const release = (name) => `${name} ${require(`${name}/package.json`).version}`
console.log(['pg', 'jsonwebtoken'].map(release).join(', '))
for await (const line of createInterface({ input: process.stdin })) {
  const [, command, user, rest] = line.match(/^(\S+) (\S+) ?(.*)$/)
  console.log(`${await commands[command](user, rest)}`)
}
process.exit()
