import type { Options } from './index.js'
import type { Page } from './page.js'

/** The options, checked and with their defaults. */
export interface Settings extends Omit<Options, 'url'> {
  readonly url: URL
  /** Of what the user's tabs share, and of what a tab stores; empty if the user isn't known. */
  readonly name: string
  readonly replay: number
  readonly heartbeat: number
}

/** Each option as its name, type and value. An empty one is the usual mistake of a template. */
const VALID =
  /^((url|user|lastEventId|credentials) string .|user number [^N]|replay number (\d\d?|[1-4]\d\d|500)$|heartbeat number \d{4}|share boolean|(refresh|token|ticket|fetch) function|(url|signal|topics) object [^,])/s

export function check(options: Options, page: Page): Settings {
  const { url = '/stream', user, topics = [], replay = 0, heartbeat = 15_000 } = options
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && !VALID.test(`${name} ${typeof value} ${value}`))
      throw new TypeError(`tidings: invalid option: ${name} = "${value}"`)
  }
  const address = new URL(url, page.location?.href)
  // In one order, because tabs with the same address share a stream.
  for (const topic of [...topics].sort()) address.searchParams.append('topic', topic)
  let name = ''
  if (user !== undefined) {
    // All tabs share a cookie, which may be another user's by now: then the bridge answers with a 401.
    address.searchParams.set('expected_user', `${user}`)
    name = `tidings:${address}`
  }
  return { ...options, url: address, name, replay, heartbeat }
}
