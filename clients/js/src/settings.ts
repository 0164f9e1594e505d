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

/** The options that a value of a type may have. */
const names: { readonly [type: string]: string } = {
  string: 'url user lastEventId credentials',
  number: 'user replay heartbeat',
  boolean: 'share',
  function: 'refresh token ticket fetch',
  object: 'url signal',
}

export function check(options: Options, page: Page): Settings {
  const { url = '/stream', user, replay = 0, heartbeat = 15_000 } = options
  for (const [name, value] of Object.entries(options)) {
    const isKnown = names[typeof value]?.split(' ').includes(name)
    // An empty user is the usual mistake of a template.
    const isEmpty = value === '' || value !== value
    const isOutside = (name === 'replay' && (value < 0 || value > 500)) || (name === 'heartbeat' && value < 1_000)
    if (value !== undefined && (!isKnown || isEmpty || isOutside))
      throw new TypeError(`tidings: unknown option or invalid value: ${name} = "${value}"`)
  }
  const address = new URL(url, page.location?.href)
  let name = ''
  if (user !== undefined) {
    // All tabs share a cookie, which may be another user's by now: then the bridge answers with a 401.
    address.searchParams.set('expected_user', `${user}`)
    name = `tidings:${address}`
  }
  return { ...options, url: address, name, replay, heartbeat }
}
