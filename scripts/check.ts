// npm run check: types, lint and format, architecture rules, names in texts, form of documents and comments, one seed
// of the simulation. Enters: the working folder. Leaves: the findings of each check; exit code 1 with any finding.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { readArguments, runScript } from '../ops/script.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const checks = [
  { name: 'types', program: 'node_modules/.bin/tsc', args: ['-p', '.'] },
  { name: 'lint and format', program: 'node_modules/.bin/biome', args: ['check', '--error-on-warnings', '--max-diagnostics=50', '.'] },
  { name: 'architecture', program: process.execPath, args: ['test/architecture.test.ts'] },
  { name: 'texts', program: process.execPath, args: ['test/texts.test.ts'] },
  { name: 'documents', program: process.execPath, args: ['test/documents.test.ts'] },
  { name: 'operate', program: process.execPath, args: ['test/operate.test.ts'] },
  { name: 'repository', program: process.execPath, args: ['test/repository.test.ts'] },
  // Its replacements of modules (test/simulation/ownership/fakes) must export everything that the product imports,
  // which only a run shows.
  { name: 'simulation', program: process.execPath, args: ['bin/run.js', 'test/simulation/ownership/main.ts', '--seeds', '1'] },
]

/** Runs one check; returns its output and whether it passed. */
function run({ program, args }: (typeof checks)[number]): Promise<{ ok: boolean; output: string }> {
  return new Promise(resolve => {
    const child = spawn(program, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', text => {
        output += text
      })
    child.on('error', error => resolve({ ok: false, output: error.message }))
    child.on('close', code => resolve({ ok: code === 0, output }))
  })
}

await runScript('Usage: npm run check', async () => {
  readArguments({ options: {} })
  const results = await Promise.all(checks.map(run))
  for (const [i, { ok, output }] of results.entries()) {
    if (!ok) console.log(output.trimEnd())
    console.log(`${ok ? 'ok  ' : 'FAIL'}  ${checks[i]?.name}`)
  }
  return results.every(({ ok }) => ok) ? 0 : 1
})
