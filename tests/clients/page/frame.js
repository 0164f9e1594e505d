// One stream of a page. The frame's origin is the stream's own, unless the query says otherwise.

import { clients } from './streams.js'

const parameters = new URLSearchParams(location.search)
const stream = { n: Number(parameters.get('n')), url: parameters.get('url'), token_url: parameters.get('token_url') }
const emit = (line) => parent.postMessage(line, '*')
window.addEventListener('error', (event) => emit({ error: String(event.error?.stack ?? event.message) }))
window.addEventListener('unhandledrejection', (event) => emit({ error: String(event.reason?.stack ?? event.reason) }))

const control = new URL(import.meta.url).origin
const modules = {
  'event-source-polyfill': 'event-source-polyfill/src/eventsource.js',
  'reconnecting-eventsource': 'reconnecting-eventsource/build/esm/reconnecting-eventsource.js',
  '@microsoft/fetch-event-source': '@microsoft/fetch-event-source/lib/esm/index.js',
  'extended-eventsource': 'extended-eventsource/dist/index.esm.js',
  'sse.js': 'sse.js/lib/sse.js',
}
async function load(name) {
  const module = await import(`${control}/${modules[name]}`)
  // This library isn't a module and attaches itself to the window.
  return name === 'event-source-polyfill' ? window : module
}

clients[parameters.get('client')](stream, emit, load)
