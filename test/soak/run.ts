// One soak run: random migrations of several VMs over three sites, one random fault in each step, all oracles after it.
// Enters: a seed, a time or a number of steps. Leaves: a verdict. Always holds: the same seed draws the same VMs,
// targets, faults and moments (what they meet depends on real processes); the first step that fails ends the run with
// the logs of all processes.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import { createRandom, type Random } from '../../sim-network/random.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { drawFault, FAULTS, type Fault, heal, type Move, pick, type Strike, strikeOnce } from './faults.ts'
import { assertNothingLeft, assertSound, type Rest, settle } from './oracles.ts'
import { createResources, type Resources } from './resources.ts'
import { openStage, type SoakVm, type Stage } from './stage.ts'

const END_MS = 180_000
const SOON = ['VM_STATE', 'VM_UNKNOWN', 'SITE_OFFLINE', 'MIGRATION_BUSY', 'VM_EXISTS', 'GATEWAY_UNREACHABLE']
/** Every so many steps each guest audits all of its memory; the VMs that were moved do so after each step. */
const AUDIT_ALL_EVERY = 10
const LOG_CHARACTERS = 12_000

type SoakOptions = {
  seed: number
  vms: number
  /** Whichever comes first. */
  minutes: number
  steps: number
  /** Names of faults; all unless given. */
  only?: string[] | undefined
  print: (line: string) => void
  signal?: AbortSignal
}

type SoakVerdict = {
  steps: number
  migrations: number
  failed: number
  outcomes: Record<string, number>
  faults: Record<string, number>
  grown: string[]
  peaks: string[]
}

export async function soak(options: SoakOptions): Promise<SoakVerdict> {
  const { seed, print, signal } = options
  const faults = chosenFaults(options.only)
  const random = createRandom(`soak/${seed}`)
  const resources = createResources()
  const verdict: SoakVerdict = { steps: 0, migrations: 0, failed: 0, outcomes: {}, faults: {}, grown: [], peaks: [] }
  await using stage = await openStage({ seed, vms: options.vms })
  const endAt = performance.now() + options.minutes * 60_000
  const rests = new Map<SoakVm, Rest>()
  for (const vm of stage.vms) rests.set(vm, await settle(stage, vm, false))
  while (performance.now() < endAt && verdict.steps < options.steps && !signal?.aborted) {
    const fault = drawFault(random, faults)
    try {
      await step(stage, { at: ++verdict.steps, fault, random: random.fork(String(verdict.steps)), rests, verdict, resources, print })
    } catch (error) {
      verdict.failed++
      print(`FAIL  #${verdict.steps} ${fault.name}: ${error instanceof Error ? error.message : error}`)
      print(await logsOf(stage))
      break
    }
  }
  Object.assign(verdict, { grown: resources.grown(), peaks: resources.peaks() })
  return verdict
}

function chosenFaults(only: string[] | undefined): Fault[] {
  if (only === undefined) return FAULTS
  const found = FAULTS.filter(({ name }) => only.includes(name))
  const unknown = only.filter(name => !FAULTS.some(fault => fault.name === name))
  if (unknown.length > 0) throw new TypeError(`no such fault: ${unknown.join(', ')}`)
  return found
}

type Step = {
  at: number
  fault: Fault
  random: Random
  rests: Map<SoakVm, Rest>
  verdict: SoakVerdict
  resources: Resources
  print: (line: string) => void
}

async function step(stage: Stage, { at, fault, random, rests, verdict, resources, print }: Step): Promise<void> {
  const began = performance.now()
  const strike: Strike = { stage, random, moves: draw(stage, random, rests), crashed: new Set() }
  await fault.arm?.(strike)
  for (const move of strike.moves) move.id = await begin(stage, move)
  verdict.migrations += strike.moves.length
  await strikeOnce(fault, strike)
  await heal(stage)
  const healed = performance.now()
  const outcomes = await Promise.all(strike.moves.map(move => outcomeOf(stage, move)))
  for (const vm of stage.vms) rests.set(vm, await settle(stage, vm, strike.crashed.has(vm.name)))
  const settledMs = performance.now() - healed
  const moved = new Set(strike.moves.map(({ vm }) => vm))
  for (const vm of stage.vms) await assertSound(stage, vm, rests.get(vm)!, { audit: moved.has(vm) || at % AUDIT_ALL_EVERY === 0 })
  await assertNothingLeft(stage, rests)
  await resources.sample(at, processesOf(stage, rests))
  for (const outcome of outcomes) verdict.outcomes[outcome] = (verdict.outcomes[outcome] ?? 0) + 1
  verdict.faults[fault.name] = (verdict.faults[fault.name] ?? 0) + 1
  const moves = strike.moves.map(({ vm, from, to, method }, index) => `${vm.name} ${from}->${to} ${method} ${outcomes[index]}`)
  print(
    `ok    #${at} ${fault.name}: ${moves.join('; ')} (at rest ${seconds(settledMs)} after healing, ${seconds(performance.now() - began)})`,
  )
}

/** One or two VMs, each to a site where it is not. */
function draw(stage: Stage, random: Random, rests: Map<SoakVm, Rest>): Move[] {
  const first = pick(random, stage.vms)
  const others = stage.vms.filter(vm => vm !== first)
  const chosen = others.length > 0 && random.chance(0.4) ? [first, pick(random, others)] : [first]
  return chosen.map(vm => {
    const from = rests.get(vm)!.site
    const to = pick(
      random,
      stage.sites.map(({ name }) => name).filter(name => name !== from),
    )
    return { vm, from, to, method: random.chance(0.85) ? ('live' as const) : ('cold' as const), id: '' }
  })
}

/** The gateway learns of what the last step has left a moment later. */
async function begin({ lab }: Stage, { vm, to, method }: Move): Promise<string> {
  const ask = () => lab.begin({ vm: vm.name, to, method }).catch(error => (SOON.includes(error.code) ? undefined : Promise.reject(error)))
  return await eventually(ask, { ms: 60_000, everyMs: 100, what: `a migration of ${vm.name} that may begin` })
}

/** How the gateway says that it ended; `unknown` where it has lost its database. */
async function outcomeOf({ lab }: Stage, { id }: Move): Promise<string> {
  const look = async () => {
    const record = await lab
      .api<MigrationRecord>('GET', `/v1/migrations/${id}`)
      .catch(error => (error.code === 'MIGRATION_UNKNOWN' ? null : undefined))
    if (record === null) return 'unknown'
    return record?.outcome ? `${record.outcome}${record.error ? ` (${record.error.code})` : ''}` : undefined
  }
  return await eventually(look, { ms: END_MS, everyMs: 100, what: `the end of migration ${id}` })
}

const processesOf = ({ gateway, sites }: Stage, rests: Map<SoakVm, Rest>) => [
  { name: 'gateway', pid: gateway.pid, vms: 0 },
  ...sites.map(({ name, pid }) => ({ name: `node-${name}`, pid, vms: [...rests.values()].filter(({ site }) => site === name).length })),
]

async function logsOf({ lab, sites }: Stage): Promise<string> {
  const files = [
    ...sites.map(({ name, dir }) => [name, join(dir, 'node.log')] as const),
    ['gateway', join(lab.dir, 'gateway.log')] as const,
  ]
  const tails = files.map(async ([name, path]) => `--- ${name}\n${(await readFile(path, 'utf8').catch(() => '')).slice(-LOG_CHARACTERS)}`)
  return (await Promise.all(tails)).join('\n')
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`
