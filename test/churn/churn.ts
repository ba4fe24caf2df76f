// Migrations that are cancelled at random moments, and migrations whose QEMU is killed at random moments, on real QEMUs
// between real processes. Enters: how many of each, a seed. Leaves: counts and what was wrong. Always holds: a
// migration that was cancelled or failed counts only once its VM has been seen to run at one site, with its memory
// whole; that the other site has nothing of it; and, at the end, that nothing of all of them is left (left.ts).
import { eventually, sleep } from '../../ops/deadline.ts'
import { requestJson } from '../../ops/http-client.ts'
import { createRandom, type Random } from '../../sim-network/random.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import type { VmFacts } from '../../wire/control.ts'
import { openProcessLab, type ProcessLab } from '../support/lab-processes.ts'
import { logTailOf } from '../support/lab-site.ts'
import { type ChurnGuest, createGuest, writeDisks } from './guest.ts'
import { grown, type Left, measure, tell, usersLeft } from './left.ts'

type ChurnOptions = {
  cancelled: number
  failed: number
  vms: number
  seed: number | string
  /** Begins no more migrations after this, ms. */
  forMs: number
  print: (line: string) => void
  signal?: AbortSignal
}

type ChurnVerdict = {
  cancelled: number
  failed: number
  /** Migrations that were over before the cancel or the kill. */
  completed: number
  /** VMs whose own QEMU was killed, and were started again. */
  crashes: number
  problems: string[]
  left: string[]
}

const ENDS_MS = 90_000
const SETTLES_MS = 60_000
const BEGINS_MS = 30_000
const PROBLEMS_MAX = 10
const TELL_EVERY = 25
/**
 * Migrations after which what is at rest is taken as the measure: by then every pool, heap and connection has been
 * used.
 */
const WARM = 6

type Run = ChurnOptions & { lab: ProcessLab; random: Random; verdict: ChurnVerdict; begun: number; usualMs: number }

export async function churn(options: ChurnOptions): Promise<ChurnVerdict> {
  const verdict: ChurnVerdict = { cancelled: 0, failed: 0, completed: 0, crashes: 0, problems: [], left: [] }
  const { print, vms } = options
  await using lab = await openProcessLab(['a', 'b'])
  const run: Run = { ...options, lab, verdict, random: createRandom(options.seed), begun: 0, usualMs: 1500 }
  const guests: ChurnGuest[] = []
  await writeDisks(lab.sites())
  for (let i = 0; i < vms; i++) {
    const first = lab.sites()[i % 2]!
    const guest = await createGuest(`vm-${i + 1}`, first)
    await guest.boot(first)
    guests.push(guest)
  }
  await Promise.all(guests.map(guest => churnOne(run, guest, () => run.begun < WARM)))
  const before = await measure(lab)
  print(`at rest, after ${run.begun} migrations: ${tell(before)}`)
  const endMs = performance.now() + options.forMs
  const goesOn = () => {
    const isDone = verdict.cancelled >= options.cancelled && verdict.failed >= options.failed
    return !isDone && performance.now() < endMs && !options.signal?.aborted && verdict.problems.length < PROBLEMS_MAX
  }
  await Promise.all(guests.map(guest => churnOne(run, guest, goesOn)))
  const after = await atRest(lab, before, vms)
  print(`at rest, after ${run.begun} migrations: ${tell(after)}`)
  verdict.left = grown(before, after, vms)
  const agents = lab.sites().map(site => ({ site, process: site.process! }))
  for (const { site } of agents) await site.stop()
  for (const { site, process } of agents)
    if (process.exitCode !== 0) verdict.left.push(`node ${site.name} ended with ${process.exitCode ?? process.signalCode}`)
  verdict.left.push(...(await usersLeft(lab.sites())))
  return verdict
}

/** What comes to an end by itself (a thread, a socket that lingers) may take its time. */
async function atRest(lab: ProcessLab, before: Left, vms: number): Promise<Left> {
  let last = await measure(lab)
  const isQuiet = async () => {
    last = await measure(lab)
    return grown(before, last, vms).length === 0 ? true : undefined
  }
  await eventually(isQuiet, { ms: SETTLES_MS, everyMs: 500, what: 'rest' }).catch(() => {})
  return last
}

async function churnOne(run: Run, guest: ChurnGuest, goesOn: () => boolean): Promise<void> {
  const { verdict, print } = run
  while (goesOn()) {
    const number = ++run.begun
    // What is missing more comes next; both, as long as nothing is missing (to be warm).
    const isCancel = number % 2 === 0 ? verdict.cancelled < run.cancelled : verdict.failed >= run.failed
    try {
      await moveOnce(run, guest, isCancel ? 'cancel' : 'kill')
    } catch (error) {
      const problem = `migration ${number} of ${guest.name}: ${error instanceof Error ? error.message : error}`
      verdict.problems.push(problem)
      print(`${new Date().toISOString()} ${problem}`)
      for (const site of run.lab.sites()) print(`--- the log of ${site.name}:\n${await logTailOf(site.dir)}`)
      if (!(await recovered(run, guest))) return
    }
    const { cancelled, failed, completed, crashes, problems } = verdict
    if (number % TELL_EVERY === 0)
      print(`${cancelled} cancelled, ${failed} failed, ${completed} completed before; ${crashes} crashes; ${problems.length} problems`)
  }
}

/** After a problem: goes on where the VM is in order again. */
const recovered = (run: Run, guest: ChurnGuest): Promise<boolean> =>
  eventually(() => settle(run, guest, true).then(yes, none), { ms: SETTLES_MS, everyMs: 1000, what: guest.name }).then(yes, () => false)
const yes = () => true
const none = () => undefined

async function moveOnce(run: Run, guest: ChurnGuest, kind: 'cancel' | 'kill'): Promise<void> {
  const { lab, random, verdict } = run
  const from = await siteOf(run, guest)
  const to = lab.sites().find(site => site.name !== from)!.name
  const migrationId = await begin(run, guest.name, to)
  const beganMs = performance.now()
  const record = recordOf(run, migrationId)
  await Promise.race([record, sleep(random.next() * 1.2 * run.usualMs)])
  let killed: string | undefined
  if (kind === 'cancel') await requestJson({ ...lab.target, method: 'DELETE', path: `/v1/migrations/${migrationId}` }).catch(() => {})
  else {
    const site = random.chance(0.3) ? from : to
    if (await guest.kill(lab.site(site))) killed = site
  }
  const { outcome, error } = await record
  if (outcome === 'completed') run.usualMs += (performance.now() - beganMs - run.usualMs) / 4
  await settle(run, guest, killed !== undefined)
  if (outcome === 'completed') verdict.completed++
  else if (kind === 'cancel' && outcome === 'cancelled') verdict.cancelled++
  else if (kind === 'kill' && outcome === 'failed') verdict.failed++
  else throw new Error(`a ${kind} ended as ${outcome}: ${error?.code} ${error?.message}`)
}

/** The gateway may not know yet how the last one ended. */
const begin = (run: Run, vm: string, to: string): Promise<string> => {
  let last: unknown
  const ask = async () => {
    try {
      const body = { vm, to }
      return (await requestJson<{ migrationId: string }>({ ...run.lab.target, method: 'POST', path: '/v1/migrations', body })).migrationId
    } catch (error) {
      last = error
      return undefined
    }
  }
  return eventually(ask, { ms: BEGINS_MS, everyMs: 100, what: `a migration of ${vm}` }).catch(() => {
    throw last
  })
}

const recordOf = ({ lab }: Run, migrationId: string): Promise<MigrationRecord> =>
  eventually(
    async () => {
      const record = await requestJson<MigrationRecord>({ ...lab.target, path: `/v1/migrations/${migrationId}` })
      return record.outcome === null ? undefined : record
    },
    { ms: ENDS_MS, everyMs: 50, what: `the end of migration ${migrationId}` },
  )

async function reports({ lab }: Run, { name }: ChurnGuest): Promise<{ site: string; state: string }[]> {
  const all = await Promise.all(
    lab.sites().map(async site => {
      const { vms } = await site.api<{ vms: VmFacts[] }>('GET', '/v1/vms')
      return vms.filter(vm => vm.name === name).map(({ state }) => ({ site: site.name, state }))
    }),
  )
  return all.flat()
}

/**
 * Its only site. A target that was told to prepare right before a cancel may have something of it for a moment more.
 */
async function siteOf(run: Run, guest: ChurnGuest): Promise<string> {
  let seen: { site: string; state: string }[] = []
  const look = async () => {
    seen = await reports(run, guest)
    return seen.length === 1 ? seen[0]!.site : undefined
  }
  return await eventually(look, { ms: SETTLES_MS, everyMs: 100, what: `${guest.name} is at one site` }).catch(error => {
    throw new Error(`${error.message}: ${JSON.stringify(seen)}`)
  })
}

/**
 * One site has it, and it runs there, whole. `mayCrash`: its own QEMU may have been the one that was killed: then it is
 * started again. Agents need a moment to see that, so what does not hold yet is looked at again, for SETTLES_MS.
 */
async function settle(run: Run, guest: ChurnGuest, mayCrash: boolean): Promise<void> {
  let why = ''
  const isSettled = async () => {
    const seen = await reports(run, guest)
    why = JSON.stringify(seen)
    const [only, ...others] = seen
    if (!only || others.length > 0) return undefined
    const site = run.lab.site(only.site)
    if (only.state === 'running')
      return await guest.assertSound(site).then(yes, error => {
        why += ` ${error instanceof Error ? error.message : error}`
        if (!mayCrash) throw error
      })
    if (!mayCrash || (only.state !== 'failed' && only.state !== 'stopped')) return undefined
    run.verdict.crashes++
    await guest.boot(site)
    return true
  }
  await eventually(isSettled, { ms: SETTLES_MS, everyMs: 100, what: `${guest.name} runs` }).catch(error => {
    throw new Error(`${error.message}: ${why}`)
  })
}
