// Writes docs/reference/cli.md: node bin/run.js scripts/cli-reference.ts
// A test compares the committed file with the output of this script.
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { cliReference } from '../cli/reference.ts'
import { commands } from '../cli/table.ts'
import { readArguments, runScript } from '../ops/script.ts'

await runScript('Usage: node bin/run.js scripts/cli-reference.ts', () => {
  readArguments({ options: {} })
  const path = fileURLToPath(new URL('../docs/reference/cli.md', import.meta.url))
  writeFileSync(path, cliReference(commands))
  console.log(`wrote ${path}`)
})
