// Shows each notification in the bell's list, and how many have arrived since the list was opened. The list that
// the page begins with may have the newest ones already: `ref` names the row of the application's table.
const bell = document.querySelector('.bell')
const list = document.querySelector('#notifications')
const count = document.querySelector('#count')

document.addEventListener('tidings:notification', ({ detail }) => {
  const item = document.getElementById(detail.ref) ?? document.createElement('li')
  item.id = detail.ref
  item.textContent = detail.text
  list.prepend(item)
  if (!bell.open) show(Number(count.value) + 1)
})
bell?.addEventListener('toggle', () => { if (bell.open) show(0) })

function show(number) {
  count.value = number
  count.hidden = number === 0
  document.title = number ? `(${number}) Bell` : 'Bell'
}
