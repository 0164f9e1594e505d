// Does with the code of the page what it is told, a line at a time.

import { createInterface } from 'node:readline'
import pg from 'pg'
import jsonwebtoken from 'jsonwebtoken/package.json' with { type: 'json' }
import prisma from 'prisma/package.json' with { type: 'json' }
import * as shop from './shop'

// As `prisma migrate` would, whose program isn't installed here.
const client = new pg.Client(process.env.DATABASE_URL)
await client.connect()
await client.query('create table orders (id bigserial primary key, customer_id bigint not null, item text not null)')
await client.end()

const done = () => 'done'
const refused = (error: Error) => `refused: ${error.message.replaceAll('\n', ' ')}`
const commands: Record<string, (user: string, rest: string) => unknown> = {
  order: (customer, item) => shop.placeOrder(BigInt(customer), item).catch(refused),
  announce: (customers, text) => shop.announce(customers.split(',').map(BigInt), text).then(done),
  token: (user) => shop.streamToken(BigInt(user)),
  ticket: (user) => shop.streamTicket(BigInt(user)),
  logout: (user) => shop.endStreams(BigInt(user)).then(done),
}

console.log(`Prisma ${prisma.version}, jsonwebtoken ${jsonwebtoken.version}`)
for await (const line of createInterface({ input: process.stdin })) {
  const [, command, user, rest] = line.match(/^(\S+) (\S+) ?(.*)$/)!
  console.log(`${await commands[command](user, rest)}`)
}
process.exit()
