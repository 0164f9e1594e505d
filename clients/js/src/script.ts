// What `tidings.min.js` offers as the global `tidings`.
export { connect, TidingsError } from './index.js'
export { asEventSource } from './eventsource.js'
