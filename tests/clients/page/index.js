// Opens a frame for each stream, and reports their events.

const lines = []
let isSending = false

async function send() {
  if (isSending || lines.length === 0) return
  isSending = true
  const body = lines.splice(0).map((line) => JSON.stringify(line)).join('\n')
  await fetch('/report', { method: 'POST', body })
  isSending = false
  send()
}

addEventListener('message', ({ data }) => {
  lines.push(data)
  send()
})

for (const { page, client, ...stream } of window.streams) {
  const frame = document.createElement('iframe')
  const query = new URLSearchParams({ client, ...stream })
  frame.src = `${page}/page?${query}`
  frame.width = frame.height = 1
  document.body.append(frame)
}
