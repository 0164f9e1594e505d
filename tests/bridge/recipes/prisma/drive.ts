// Does with the code of the page what it is told, a line at a time.

import { createInterface } from 'node:readline'
import jsonwebtoken from 'jsonwebtoken/package.json' with { type: 'json' }
import prisma from 'prisma/package.json' with { type: 'json' }
import * as shop from './shop'

const done = () => 'done'
const refused = (error: Error) => `refused: ${error.message.replaceAll('\n', ' ')}`
const commands: Record<string, (user: string, rest: string) => unknown> = {
  order: (customer, item) => shop.placeOrder(customer, item).catch(refused),
  announce: (customers, text) => shop.announce(customers.split(','), text).then(done),
  token: (user) => shop.streamToken(user),
  ticket: (user) => shop.streamTicket(user),
  logout: (user) => shop.endStreams(user).then(done),
}

console.log(`Prisma ${prisma.version}, jsonwebtoken ${jsonwebtoken.version}`)
for await (const line of createInterface({ input: process.stdin })) {
  const [, command, user, rest] = line.match(/^(\S+) (\S+) ?(.*)$/)!
  console.log(`${await commands[command](user, rest)}`)
}
process.exit()
