// npm run check: types, lint and format, architecture rules. Enters: the working folder. Leaves: what each found; exit code 1 when any found something.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const checks = [
  { name: 'types', program: 'node_modules/.bin/tsc', args: ['-p', '.'] },
  { name: 'lint and format', program: 'node_modules/.bin/biome', args: ['check', '--error-on-warnings', '--max-diagnostics=50', '.'] },
  { name: 'architecture', program: process.execPath, args: ['test/architecture.test.ts'] },
]

/** Runs one check; its output and whether it found nothing. */
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

const results = await Promise.all(checks.map(run))
for (const [i, { ok, output }] of results.entries()) {
  if (!ok) console.log(output.trimEnd())
  console.log(`${ok ? 'ok  ' : 'FAIL'}  ${checks[i]?.name}`)
}
process.exitCode = results.every(({ ok }) => ok) ? 0 : 1
