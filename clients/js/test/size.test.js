import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

/** The size of an entry point after a bundler, in KB. */
async function sizeOf(entry) {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(`../dist/${entry}.js`, import.meta.url))],
    bundle: true,
    minify: true,
    format: 'esm',
    write: false,
    external: entry === 'index' ? [] : ['react', 'vue', './index.js'],
  })
  return gzipSync(outputFiles[0].contents, { level: 9 }).length / 1024
}

for (const [entry, limit] of [
  ['index', 4.0],
  ['react', 0.7],
  ['vue', 0.6],
]) {
  test(`${entry} has at most ${limit} KB`, async () => {
    const size = await sizeOf(entry)
    assert.ok(size <= limit, `${size.toFixed(2)} KB`)
  })
}

test('the core has no dependency', async () => {
  const { default: manifest } = await import('../package.json', { with: { type: 'json' } })
  assert.equal(manifest.dependencies, undefined)
  assert.deepEqual(
    Object.values(manifest.peerDependenciesMeta).map(({ optional }) => optional),
    [true, true],
  )
})
