// npm run soak: random migrations with random faults on real QEMUs and real processes. See --help.
import { randomInt } from 'node:crypto'
import { decimalNumber, knownNames, readArguments, runScript, wholeNumber } from '../../ops/script.ts'
import { labMissing } from '../support/lab.ts'
import { FAULTS } from './faults.ts'
import { soak } from './run.ts'

const HELP = `Usage: npm run soak -- [--minutes N] [--steps N] [--vms N] [--seed N] [--only FAULT[,FAULT...]] [--list]

Moves Linux guests at random between three sites and injects one fault of the fault catalogue (docs/internals/ownership.md) in each step. After each step:
every VM runs at exactly one site and did so all the time, no beat of a guest is lost or doubled, its memory is what it wrote, no process or
folder is left, nothing waits for more than 60 s after healing. At the end: memory and descriptors of the processes have not grown.

Options:
  --minutes N   how long (default 40)
  --steps N     stop after so many steps (default: no limit)
  --vms N       how many VMs, 1 to 8 (default 5)
  --seed N      draw VMs, targets, faults and moments from this seed (default: a new one; it is printed)
  --only NAMES  only these faults (--list names them)
  --list        print the faults and the rows of the catalogue that they try
  --help        show this
`

const text = { type: 'string' } as const
const OPTIONS = {
  ...{ minutes: text, steps: text, vms: text, seed: text, only: text },
  list: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
} as const

function optionsOf(values: Partial<Record<'minutes' | 'steps' | 'vms' | 'seed' | 'only', string>>) {
  const { minutes = '40', steps, vms = '5', seed, only } = values
  const names = FAULTS.map(({ name }) => name)
  return {
    minutes: decimalNumber('--minutes', minutes, { min: 0.1, max: 100_000 }),
    steps: steps === undefined ? Number.POSITIVE_INFINITY : wholeNumber('--steps', steps, { min: 1 }),
    vms: wholeNumber('--vms', vms, { min: 1, max: 8 }),
    seed: seed === undefined ? randomInt(2 ** 32) : wholeNumber('--seed', seed),
    only:
      only === undefined
        ? undefined
        : knownNames(
            'fault',
            only.split(',').map(name => name.trim()),
            names,
          ),
  }
}

async function main(): Promise<number> {
  const { values } = readArguments({ options: OPTIONS })
  if (values.help) {
    process.stdout.write(HELP)
    return 0
  }
  if (values.list) {
    for (const { name, rows } of FAULTS) console.log(`${name}${rows.length > 0 ? ` (#${rows.join(', #')})` : ''}`)
    return 0
  }
  const missing = labMissing()
  if (missing) {
    console.error(`error SETUP_NEEDED: ${missing}`)
    return 2
  }
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => interrupted.abort())
  const options = optionsOf(values)
  console.log(`seed ${options.seed}: ${options.vms} VMs, ${options.minutes} minutes (again: npm run soak -- --seed ${options.seed})`)
  const verdict = await soak({ ...options, print: line => console.log(line), signal: interrupted.signal })
  const { steps, migrations, failed, grown } = verdict
  console.log(`\n${steps} steps, ${migrations} migrations`)
  for (const [outcome, count] of Object.entries(verdict.outcomes)) console.log(`  ${count}  ${outcome}`)
  console.log('faults:')
  for (const [name, count] of Object.entries(verdict.faults)) console.log(`  ${count}  ${name}`)
  for (const line of verdict.peaks) console.log(line)
  for (const line of grown) console.log(`FAIL  grown: ${line}`)
  const red = failed + grown.length + (steps === 0 ? 1 : 0)
  console.log(`\n${steps - failed} passed, ${red} failed`)
  return red > 0 ? 1 : 0
}

await runScript(HELP, main)
