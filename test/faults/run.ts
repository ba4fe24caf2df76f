// npm run test:faults: the fault catalogue (docs/OWNERSHIP.md) on real QEMU, real processes and a real Linux guest, one process and one scene for each case.
// Enters: --case NUMBERS, --verbose, --list. Leaves: a line for each case, what a red one printed, and last `N passed, N failed`; exit code 1 when any failed.
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { runFile } from '../support/run-file.ts'
import { allCases } from './all.ts'

const HELP = `Usage: npm run test:faults -- [--case NUMBERS] [--list] [--verbose]

Tries the cases of the fault catalogue end to end. Each boots a small Linux guest under QEMU; all of them take ten to twenty minutes on two cores.

Options:
  --case NUMBERS  only these rows of the catalogue: 24 or 24,31 or 24-31
  --list          say which there are
  --verbose       print what each case printed, not only the red ones
  --help          show this
`
const DEADLINE_MS = 240_000
const { values: flags } = parseArgs({
  options: {
    case: { type: 'string' },
    list: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
})

/** '3,8-10' -> 3, 8, 9, 10. */
function numbersOf(text: string): number[] {
  return text.split(',').flatMap(part => {
    const [first = Number.NaN, last = first] = part.split('-').map(Number)
    if (!Number.isInteger(first) || !Number.isInteger(last)) throw new TypeError(`--case '${text}': expected numbers like 24,31 or 24-31`)
    return Array.from({ length: last - first + 1 }, (_, i) => first + i)
  })
}

async function runAll(): Promise<void> {
  const wanted = flags.case === undefined ? undefined : numbersOf(flags.case)
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interrupted.abort())
  const titles = Map.groupBy(
    allCases().filter(({ number }) => wanted?.includes(number) ?? true),
    ({ number }) => number,
  )
  const sum = { passed: 0, failed: 0, skipped: 0 }
  for (const [number, cases] of titles) {
    if (interrupted.signal.aborted) break
    process.env['GODWIT_FAULT_CASES'] = String(number)
    const file = fileURLToPath(new URL('./cases.ts', import.meta.url))
    const { passed, failed, skipped, reasons, skips, output, tookMs } = await runFile(file, {
      deadlineMs: DEADLINE_MS,
      signal: interrupted.signal,
    })
    sum.passed += passed
    sum.failed += failed
    sum.skipped += skipped
    const word = reasons.length > 0 ? 'FAIL' : skipped > 0 ? 'skip' : 'ok  '
    for (const { title } of cases) console.log(`${word}  ${title}`)
    console.log(`      ${(tookMs / 1000).toFixed(1)} s${[...reasons, ...skips].map(reason => `; ${reason}`).join('')}`)
    if (reasons.length > 0 || flags.verbose) console.log(output.replace(/^/gm, '    | '))
  }
  if (titles.size === 0) console.log('no such case')
  process.exitCode = sum.failed > 0 || titles.size === 0 || interrupted.signal.aborted ? 1 : 0
  console.log(`\n${sum.passed} passed, ${sum.failed} failed${sum.skipped > 0 ? `, ${sum.skipped} skipped` : ''}`)
}

if (flags.help) process.stdout.write(HELP)
else if (flags.list) for (const { title } of allCases()) console.log(title)
else await runAll()
