// Compiles src/ to dist/: modules with their types, and one script for pages without a bundler.

import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = dirname(fileURLToPath(import.meta.url))
const typescript = dirname(createRequire(import.meta.url).resolve('typescript/package.json'))

rmSync(join(root, 'dist'), { recursive: true, force: true })
execFileSync(process.execPath, [join(typescript, 'bin', 'tsc'), '--project', root], { stdio: 'inherit' })
await build({
  entryPoints: [join(root, 'dist/script.js')],
  outfile: join(root, 'dist/tidings.min.js'),
  bundle: true,
  minify: true,
  format: 'iife',
  globalName: 'tidings',
  target: ['chrome90', 'firefox96', 'safari15.4'],
  logLevel: 'warning',
})
