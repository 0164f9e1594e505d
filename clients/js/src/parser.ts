// Parses `text/event-stream` as the HTML standard defines it:
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

/** What a blank line ended. */
export interface Block {
  readonly type: string
  /**
   * Its lines, each after a line feed, which JSON ignores. Empty if the block has no data: such a block is no event, but
   * may have an id.
   */
  readonly data: string
  /** The stream's last event id after this block. */
  readonly id: string
}

/** Returns a function that takes the stream's bytes, cut anywhere. */
export function createParser(
  // In the standard, the first blank line of a stream makes a client forget the id that it presented.
  lastEventId: string,
  onBlock: (block: Block) => void,
  onRetry: (milliseconds: number) => void,
): (bytes: Uint8Array) => void {
  const decoder = new TextDecoder() // removes a byte order mark at the beginning
  let rest = ''
  let endsInCR = false
  let type = ''
  let data = ''
  let id = lastEventId

  function takeLine(line: string) {
    if (line === '') {
      onBlock({ type: type || 'message', data, id })
      type = data = ''
      return
    }
    const [, name, value] = /^([^:]*):? ?(.*)/s.exec(line) as unknown as [string, string, string]
    if (name === 'data') data += `\n${value}`
    else if (name === 'event') type = value
    else if (name === 'id' && !value.includes('\0')) id = value
    else if (name === 'retry' && /^\d+$/.test(value)) onRetry(+value)
  }

  return (bytes) => {
    let text = decoder.decode(bytes, { stream: true })
    if (text === '') return
    if (endsInCR && text[0] === '\n') text = text.slice(1)
    endsInCR = text.endsWith('\r')
    const lines = text.split(/\r\n|[\r\n]/)
    lines[0] = rest + lines[0]
    rest = lines.pop()!
    lines.forEach(takeLine)
  }
}
