// npm run test:faults: the fault catalogue (docs/internals/ownership.md) on real QEMU, real processes and a real Linux
// guest, one process and one scene for each case.
// Enters: --case NUMBERS, --verbose, --list. Leaves: a line for each case, what a red one printed, and last `N passed,
// N failed`; exit code 1 when any failed.
import { fileURLToPath } from 'node:url'
import { readArguments, runScript, UsageError } from '../../ops/script.ts'
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
/** Above the longest case (220 s), and what its end takes. */
const DEADLINE_MS = 280_000
function read() {
  const { values } = readArguments({
    options: {
      case: { type: 'string' },
      list: { type: 'boolean', default: false },
      verbose: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  return { ...values, wanted: values.case === undefined ? undefined : numbersOf(values.case) }
}

/** '3,8-10' -> 3, 8, 9, 10. Each of them, and each range, must be in the catalogue. */
function numbersOf(text: string): number[] {
  const known = new Set(allCases().map(({ number }) => number))
  return text.split(',').flatMap(part => {
    const found = /^(\d{1,3})(?:-(\d{1,3}))?$/.exec(part)
    const first = Number(found?.[1])
    const last = Number(found?.[2] ?? first)
    if (!found || last < first) throw new UsageError(`--case '${text}': expected numbers like 24,31 or 24-31`)
    const numbers = Array.from({ length: last - first + 1 }, (_, i) => first + i).filter(number => known.has(number))
    if (numbers.length === 0) throw new UsageError(`--case '${part}': no such case is tried here; --list says which there are`)
    return numbers
  })
}

async function runAll({ wanted, verbose }: ReturnType<typeof read>): Promise<number> {
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
      deadlineMs: DEADLINE_MS * cases.length,
      signal: interrupted.signal,
    })
    sum.passed += passed
    sum.failed += failed
    sum.skipped += skipped
    const word = reasons.length > 0 ? 'FAIL' : skipped > 0 ? 'skip' : 'ok  '
    for (const { title } of cases) console.log(`${word}  ${title}`)
    console.log(`      ${(tookMs / 1000).toFixed(1)} s${[...reasons, ...skips].map(reason => `; ${reason}`).join('')}`)
    if (reasons.length > 0 || verbose) console.log(output.replace(/^/gm, '    | '))
  }
  console.log(`\n${sum.passed} passed, ${sum.failed} failed${sum.skipped > 0 ? `, ${sum.skipped} skipped` : ''}`)
  return sum.failed > 0 || sum.passed === 0 || interrupted.signal.aborted ? 1 : 0
}

await runScript(HELP, async () => {
  const wish = read()
  if (wish.help) process.stdout.write(HELP)
  else if (wish.list) for (const { title } of allCases()) console.log(title)
  else return await runAll(wish)
  return 0
})
