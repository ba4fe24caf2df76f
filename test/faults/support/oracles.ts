// The four oracles of every fault case: the ownership records of both sides, query-status of both QEMUs, the guest's
// own counter, guest memory.
// Enters: a scene after its fault, and how the catalogue says that it ends. Leaves: nothing, or an AssertionError that
// says what was found.
// Always holds: each oracle is asked in each case; one that has nothing to look at (a QEMU that was killed) is asked to
// see exactly that.
import { eventually } from '../../../ops/deadline.ts'
import type { VmFacts } from '../../../wire/control.ts'
import { assert } from '../../support/suite.ts'
import { readRecords, type SiteRecords, statesOf } from './records.ts'
import { type Scene, VM } from './scene.ts'

/**
 * A: runs at the source at e. C: runs at the target at e+1. R: reclaimed by the source at e+2. X: rejected, nothing
 * changed. doubt: paused at both.
 */
type Outcome = 'A' | 'C' | 'R' | 'X' | 'doubt'

type Expected = {
  from?: string
  to?: string
  /** The epoch before; default 1. */
  epoch?: number
  /** What became of the guest: `sound` (default), `gone` with its owner's QEMU, `booted` anew. */
  guest?: 'sound' | 'gone' | 'booted'
  /**
   * Where memory of two copies was never seen side by side (the case ends before LOADED, or the target's host has lost
   * it): the guest's audit alone.
   */
  isUncompared?: boolean
}

/** Of a hang only: longer than the sites take to find that a link is dead, and to meet anew. */
const SETTLE_MS = 60_000
const AFTER_COMMIT = ['RELINQUISHED', 'RETIRED', 'RECLAIMED']

export async function oracles(scene: Scene, outcome: Outcome, expected: Expected = {}): Promise<void> {
  const { from = 'a', to = 'b', guest = 'sound' } = expected
  const owner = outcome === 'C' ? to : from
  await statusOracle(scene, outcome, expected, owner)
  await recordsOracle(scene, outcome, expected)
  if (outcome !== 'doubt') await guestOracle(scene, owner, guest)
  memoryOracle(scene, outcome, expected)
}

/** QMP: who executes now, and that no two ever did. */
async function statusOracle(scene: Scene, outcome: Outcome, expected: Expected, owner: string): Promise<void> {
  const { from = 'a', to = 'b', guest = 'sound' } = expected
  const other = owner === to ? from : to
  const wanted = outcome === 'doubt' ? ['paused', 'postmigrate', 'finish-migrate'] : guest === 'gone' ? ['gone'] : ['running']
  let seen = { owner: '', other: '' }
  const isSettled = async () => {
    seen = { owner: await scene.eyes.status(owner), other: await scene.eyes.status(other) }
    const isOtherRight = outcome === 'doubt' ? seen.other !== 'running' : seen.other === 'gone'
    return (wanted.includes(seen.owner) && isOtherRight) || undefined
  }
  await eventually(isSettled, { ms: SETTLE_MS, what: 'settled' }).catch(async () =>
    assert.unreachable(`query-status: ${owner} ${seen.owner} (expected ${wanted}), ${other} ${seen.other}\n${await scene.log()}`),
  )
  assert.equal(scene.eyes.overlaps(), [], 'two copies have executed at once')
  if (outcome !== 'C') assert.not(scene.eyes.ranAt(to, scene.begunAt), `it has never executed at ${to}`)
}

/** Records: what each side's signed chain says, and what the agent of the owner says. */
async function recordsOracle(
  scene: Scene,
  outcome: Outcome,
  { from = 'a', to = 'b', epoch = 1, guest = 'sound' }: Expected,
): Promise<void> {
  const look = async () => {
    const [source, target] = [await readRecords(scene.site(from).dir, VM), await readRecords(scene.site(to).dir, VM)]
    return recordsProblem(scene.migrationId, { source, target }, outcome, epoch)
  }
  // The last record of a side may come a moment after its VM has settled.
  let problem: string | undefined
  const isGood = async () => {
    problem = await look()
    return problem === undefined || undefined
  }
  await eventually(isGood, { ms: 10_000, everyMs: 200, what: 'the records' }).catch(() => {})
  if (problem !== undefined) assert.unreachable(`the ownership records: ${problem}\n${await scene.log()}`)
  const owner = scene.site(outcome === 'C' ? to : from)
  if (!owner.process || outcome === 'doubt') return
  const vms = (await owner.api<{ vms: VmFacts[] }>('GET', '/v1/vms')).vms.map(({ state, epoch: at }) => ({ state, epoch: at }))
  const now = { A: epoch, X: epoch, C: epoch + 1, R: epoch + 2 }[outcome]
  if (guest !== 'gone') assert.equal(vms, [{ state: 'running', epoch: now }], `what ${owner.name} says of its VM`)
}

function recordsProblem(
  migrationId: string,
  { source, target }: { source: SiteRecords; target: SiteRecords },
  outcome: Outcome,
  epoch: number,
): string | undefined {
  const unsound = [...source.unsound, ...target.unsound]
  if (unsound.length > 0) return unsound.join('; ')
  const mine = (records: SiteRecords, side: string) =>
    records.chains.find(([first]) => first!.migrationId === migrationId && first!.side === side)
  const [here, there] = [mine(source, 'source'), mine(target, 'target')]
  const [said, answered] = [statesOf(here), statesOf(there)]
  const text = `source ${said.join(' ') || 'nothing'}; target ${answered.join(' ') || 'nothing'}`
  const granted = there?.find(({ state }) => state === 'GRANTED')
  if (granted && here?.find(({ state }) => state === 'RELINQUISHED')?.manifestHash !== granted.manifestHash)
    return `GRANTED without a RELINQUISHED of the same manifest: ${text}`
  const ran = answered.includes('RESUMING') || answered.includes('RUNNING')
  const ends = [said.at(-1), answered.at(-1)]
  const isRight = {
    A:
      !said.some(state => AFTER_COMMIT.includes(state)) &&
      [undefined, 'ABORTED'].includes(ends[0]) &&
      [undefined, 'REFUSED'].includes(ends[1]),
    X: [undefined, 'ABORTED'].includes(ends[0]) && !said.includes('STREAMING') && [undefined, 'REFUSED'].includes(ends[1]),
    C: ends[0] === 'RETIRED' && ran && target.epoch === epoch + 1,
    R: ends[0] === 'RECLAIMED' && ends[1] === 'REFUSED' && !ran && source.epoch === epoch + 2,
    doubt: ends[0] === 'RELINQUISHED' && !ran,
  }[outcome]
  return isRight ? undefined : `${text}; epochs ${source.epoch} and ${target.epoch}: not ${outcome}`
}

/**
 * The guest on its serial line: it beats, no beat was lost or came twice, and its own audit of every page finds
 * nothing.
 */
async function guestOracle({ serial, type, log }: Scene, owner: string, guest: Expected['guest']): Promise<void> {
  if (guest === 'gone') {
    const before = serial.summary().beats
    await new Promise(resolve => setTimeout(resolve, 300))
    return assert.is(serial.summary().beats, before, 'a guest whose QEMU is gone says nothing')
  }
  await serial.next('beat', 30_000).catch(async error => assert.unreachable(`${error.message}\n${await log()}`))
  assert.is(serial.speaker(), owner)
  const answer = serial.next('audit-full', 60_000)
  answer.catch(() => {})
  await type(owner, 'audit')
  const full = await answer
  const { missing, duplicates, restarts, badLines, bad } = serial.summary()
  assert.equal({ bad: full.bad, ever: full.ever }, { bad: 0, ever: 0 }, `the guest's own audit: ${bad.join('; ')}`)
  assert.ok(full.pages > 0 && full.versions > 0, 'the audit covers pages that were rewritten')
  const restartsWanted = guest === 'booted' ? 1 : 0
  assert.equal(
    { missing, duplicates, restarts, badLines },
    { missing: 0, duplicates: 0, restarts: restartsWanted, badLines: 0 },
    serial.seams().join('\n'),
  )
}

/** Memory: what stood loaded at the target was the source's, byte for byte. */
function memoryOracle({ compared }: Scene, outcome: Outcome, { isUncompared = false }: Expected): void {
  for (const { pages, different } of compared)
    assert.equal({ pages: pages > 0, different }, { pages: true, different: 0 }, 'guest RAM at LOADED')
  const isLoaded = outcome === 'C' || outcome === 'R' || outcome === 'doubt'
  if (isLoaded && !isUncompared) assert.ok(compared.length > 0, 'the two copies were compared')
}
