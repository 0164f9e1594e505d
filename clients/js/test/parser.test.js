import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createParser } from '../dist/parser.js'

/** What a stream means: its blocks and `retry:` values, read in the given pieces. */
function parse(pieces, lastEventId = '') {
  const found = []
  const feed = createParser(
    lastEventId,
    (block) => found.push(block),
    (retry) => found.push(retry),
  )
  for (const piece of pieces) feed(typeof piece === 'string' ? new TextEncoder().encode(piece) : piece)
  return found
}

/** A block with each line of the data after a line feed. */
const event = (data, { type = 'message', id = '' } = {}) => ({ type, data: data === null ? '' : `\n${data}`, id })

for (const [name, stream, expected] of [
  ['an event', 'data: a\n\n', [event('a')]],
  ['several lines of data', 'data: a\ndata:b\ndata\n\n', [event('a\nb\n')]],
  ['one space is removed after the colon, not two', 'data:  a\n\n', [event(' a')]],
  ['empty data is data', 'data:\n\n', [event('')]],
  ['a type, of one block', 'event: order\ndata: a\n\ndata: b\n\n', [event('a', { type: 'order' }), event('b')]],
  ['the last type counts, and an empty one is message', 'event: a\nevent:\ndata: x\n\n', [event('x')]],
  ['an id, which stays', 'id: 7-A\ndata: a\n\ndata: b\n\n', [event('a', { id: '7-A' }), event('b', { id: '7-A' })]],
  ['an id without data', 'id: 7-A\n\n', [event(null, { id: '7-A' })]],
  ['an empty id resets it', 'id: 7\ndata: a\n\nid\ndata: b\n\n', [event('a', { id: '7' }), event('b')]],
  ['an id with NUL is ignored', 'id: 7\n\nid: 8\0\ndata: a\n\n', [event(null, { id: '7' }), event('a', { id: '7' })]],
  ['an id counts only once its block is complete', 'id: 7\ndata: a\n\nid: 8\ndata: b\n', [event('a', { id: '7' })]],
  ['an incomplete block is dropped', 'data: a', []],
  ['a comment', ': hello\ndata: a\n:\n\n', [event('a')]],
  ['unknown fields, and fields in other case', 'foo: x\nData: y\n data: z\ndata: a\n\n', [event('a')]],
  ['a value with colons', 'data: a:b: c\n\n', [event('a:b: c')]],
  ['line breaks of Unicode are text', 'data: a\u2028b\u0085c\n\n', [event('a\u2028b\u0085c')]],
  ['retry counts at once', 'retry: 1500\n: later\n', [1500]],
  ['retry that is no number is ignored', 'retry: 1s\nretry: -1\nretry\nretry: 1.5\n', []],
  ['a byte order mark at the beginning', '\ufeffdata: a\n\n', [event('a')]],
  ['a byte order mark elsewhere is text', 'data: a\n\n\ufeffdata: b\n\n', [event('a'), event(null)]],
  ['empty blocks', '\n\n', [event(null), event(null)]],
  ['four-byte characters', 'data: \u{1f600}\u00e9\n\n', [event('\u{1f600}\u00e9')]],
]) {
  test(`parser: ${name}`, () => {
    assert.deepEqual(parse([stream]), expected)
    for (const end of ['\n', '\r\n', '\r']) {
      const bytes = new TextEncoder().encode(stream.replaceAll('\n', end))
      assert.deepEqual(parse([bytes]), expected, JSON.stringify(end))
      // Cut at each byte, and into single bytes, with nothing in between and with an empty piece.
      for (let cut = 0; cut <= bytes.length; cut++)
        assert.deepEqual(parse([bytes.subarray(0, cut), new Uint8Array(), bytes.subarray(cut)]), expected)
      assert.deepEqual(parse(Array.from(bytes, (byte) => Uint8Array.of(byte))), expected)
    }
  })
}

test('parser: mixed line ends', () => {
  assert.deepEqual(parse(['data: a\r\ndata: b\rdata: c\n\r\n\r']), [event('a\nb\nc'), event(null)])
})

test('parser: an event that ends with CR is delivered without waiting for LF', () => {
  assert.deepEqual(parse(['data: a\r\r']), [event('a')])
})

test('parser: the id that was presented stays until the stream has one', () => {
  const blocks = parse(['retry: 1\n\ndata: a\n\nid: 8\ndata: b\n\n'], '7-A')
  assert.deepEqual(blocks, [1, event(null, { id: '7-A' }), event('a', { id: '7-A' }), event('b', { id: '8' })])
})

test('parser: a long line in many pieces takes linear time', () => {
  const piece = 'x'.repeat(1_000)
  const pieces = ['data: ', ...Array.from({ length: 4_000 }, () => piece), '\n\n']
  const begin = performance.now()
  assert.equal(parse(pieces)[0].data.length, 4_000_001)
  assert.ok(performance.now() - begin < 2_000)
})
