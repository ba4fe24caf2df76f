// npm run test:churn: migrations cancelled and failed at random moments, on real QEMUs and real processes. See --help.
import { randomInt } from 'node:crypto'
import { readArguments, runScript, wholeNumber } from '../../ops/script.ts'
import { labMissing } from '../support/lab.ts'
import { churn } from './churn.ts'

const USAGE = `Usage: npm run test:churn -- [--cancelled N] [--failed N] [--vms N] [--seed N] [--minutes N]

Small guests migrate between two nodes, gateway and nodes as processes of their own. Migrations are cancelled at random moments, or fail because the target's or
the source's QEMU is killed (kill -9; the source's is a host crash: its VM is started again). After each: the VM runs at one site, its memory is whole. At the
end: no process has died, and no thread, socket, descriptor, QEMU, VM folder, file or OS user is left.

  --cancelled N  until so many were cancelled (default 100)
  --failed N     and so many have failed (default 100)
  --vms N        VMs that migrate at the same time (default 2)
  --seed N       moments and kinds (default: a new one, printed; the machine's own timing is not in it)
  --minutes N    begin no more after this (default 600); what is missing then is counted as failed
  --help         show this
`

async function main(): Promise<number> {
  const text = { type: 'string' } as const
  const { values } = readArguments({
    options: { cancelled: text, failed: text, vms: text, seed: text, minutes: text, help: { type: 'boolean', default: false } },
  })
  if (values.help) {
    console.log(USAGE)
    return 0
  }
  const number = (name: keyof typeof values, otherwise: number, min: number, max: number) =>
    values[name] === undefined ? otherwise : wholeNumber(`--${name}`, String(values[name]), { min, max })
  const wish = {
    cancelled: number('cancelled', 100, 0, 1_000_000),
    failed: number('failed', 100, 0, 1_000_000),
    vms: number('vms', 2, 1, 16),
    seed: number('seed', randomInt(2 ** 40), 0, 2 ** 40),
  }
  const forMs = 60_000 * number('minutes', 600, 1, 100_000)
  const missing = labMissing()
  if (missing) {
    console.error(`error SETUP_NEEDED: ${missing}`)
    return 2
  }
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interrupted.abort())
  console.log(`seed ${wish.seed}`)
  const verdict = await churn({ ...wish, forMs, print: line => console.log(line), signal: interrupted.signal })
  const { cancelled, failed, completed, crashes, problems, left } = verdict
  console.log(
    `\n${cancelled} cancelled, ${failed} failed, ${completed} completed before; ${crashes} VMs crashed with their QEMU and were started again`,
  )
  for (const problem of problems) console.log(`problem: ${problem}`)
  for (const line of left) console.log(`left: ${line}`)
  const lacking = Math.max(0, wish.cancelled - cancelled) + Math.max(0, wish.failed - failed)
  if (lacking > 0) console.log(`${lacking} were not run`)
  const bad = problems.length + left.length
  console.log(`\n${cancelled + failed} passed, ${bad + lacking} failed`)
  return bad + lacking > 0 || cancelled + failed === 0 ? 1 : 0
}

await runScript(USAGE, main)
