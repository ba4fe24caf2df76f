// The commit window on real QEMU: grants and answers that are lost, disks that refuse, sides that give up. The oracle
// each time: the records, `query-status` on both sides, and never two copies.
import { findQemu } from '../../../edge-node/vm/qemu.ts'
import { createLog } from '../../../ops/log.ts'
import { migrationPair, outcomeOf, runningCopies } from '../../support/migration-pair.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const skip = await findQemu().then(
  ({ version }) => (Number.parseInt(version, 10) < 9 && 'QEMU >= 9 is not installed') || undefined,
  error => String(error),
)
const test = suite('hand-over', { ms: 60_000 })

test(
  'a migration that goes well: the states in their order, one copy, at the target, and no warning',
  async () => {
    const lines: string[] = []
    await using pair = await migrationPair({ log: createLog({ level: 'warn', write: line => void lines.push(line) }) })
    const { report } = await outcomeOf(pair.source.done)
    await pair.target.done
    assert.is(report?.outcome, 'completed')
    assert.equal(pair.sourceStates, ['OFFERED', 'STREAMING', 'QUIESCED', 'RELINQUISHED', 'RETIRED'])
    assert.equal(pair.targetStates, ['RESERVED', 'RECEIVING', 'LOADED', 'GRANTED', 'RESUMING', 'RUNNING'])
    assert.equal(await runningCopies(pair), { source: false, target: true })
    assert.is(pair.committedEpoch(), 6)
    assert.is(pair.source.fate(), 'moved')
    assert.equal(lines, [])
  },
  { skip },
)

test(
  'a grant that is lost is given again over a new meeting, and the VM runs at the target',
  async () => {
    await using pair = await migrationPair({
      onSource: (state, { cut }) => {
        if (state === 'RELINQUISHED') cut()
      },
    })
    const { report } = await outcomeOf(pair.source.done)
    await pair.target.done
    assert.is(report?.outcome, 'completed')
    assert.is(pair.attempts(), 2)
    assert.equal(await runningCopies(pair), { source: false, target: true })
  },
  { skip },
)

test(
  'a RUNNING that is lost is asked for again, and answered without a second grant taking effect',
  async () => {
    let isDeaf = false
    await using pair = await migrationPair({
      passes: (direction, attempt) => !(isDeaf && direction === 'backward' && attempt === 1),
      onTarget: (state, { cut }) => {
        if (state === 'RESUMING') isDeaf = true
        if (state === 'RUNNING') cut()
      },
    })
    const { report } = await outcomeOf(pair.source.done)
    await pair.target.done
    assert.is(report?.outcome, 'completed')
    assert.is(pair.attempts(), 2)
    assert.equal(pair.targetStates.filter(state => state === 'RESUMING').length, 1)
    assert.equal(await runningCopies(pair), { source: false, target: true })
  },
  { skip },
)

test(
  'a target that cannot make the VM its own gives it back: the source reclaims it with its memory',
  async () => {
    await using pair = await migrationPair({
      onTarget: state => {
        if (state === 'GRANTED') throw new Error('no space left on device')
      },
    })
    const { code } = await outcomeOf(pair.source.done)
    assert.is(code, 'MIGRATION_REFUSED')
    assert.is((await outcomeOf(pair.target.done)).code !== undefined, true)
    assert.equal(pair.sourceStates.slice(-2), ['RELINQUISHED', 'RECLAIMED'])
    assert.is(pair.source.fate(), 'here')
    assert.is(pair.source.epoch(), 7)
    assert.equal(await runningCopies(pair), { source: true, target: false })
  },
  { skip },
)

test(
  'a commit that the disk refuses is no commit: nothing is granted and the VM runs on at the source',
  async () => {
    await using pair = await migrationPair({
      onSource: state => {
        if (state === 'RELINQUISHED') throw new Error('no space left on device')
      },
    })
    assert.is((await outcomeOf(pair.source.done)).code, 'MIGRATION_FAILED')
    await outcomeOf(pair.target.done)
    assert.not(pair.targetStates.includes('GRANTED'))
    assert.is(pair.source.fate(), 'here')
    assert.equal(await runningCopies(pair), { source: true, target: false })
  },
  { skip },
)

test(
  'a link that dies when LOADED is sent: the source takes the VM back, the target waits until it is told, and runs nothing',
  async () => {
    let isMute = false
    await using pair = await migrationPair({
      passes: direction => !(isMute && direction === 'backward'),
      onTarget: (state, { cut }) => {
        if (state !== 'LOADED') return
        isMute = true
        setTimeout(cut, 200)
      },
    })
    const { code } = await outcomeOf(pair.source.done)
    assert.ok(code === 'CONNECTION_LOST' || code === 'STREAM_RESET', code)
    assert.equal(await runningCopies(pair), { source: true, target: false })
    assert.is(pair.targetStates.at(-1), 'LOADED')
    pair.target.cancel()
    await outcomeOf(pair.target.done)
    assert.is(pair.targetStates.at(-1), 'REFUSED')
    assert.equal(await runningCopies(pair), { source: true, target: false })
  },
  { skip },
)

test(
  'when nobody answers, the source keeps the VM paused in doubt, and a target whose patience ends runs nothing',
  async () => {
    await using pair = await migrationPair({
      patienceMs: 1_500,
      grantPatienceMs: 3_000,
      passes: (_, attempt) => attempt === 1,
      onSource: (state, { cut }) => {
        if (state === 'RELINQUISHED') cut()
      },
    })
    assert.is((await outcomeOf(pair.source.done)).code, 'MIGRATION_DOUBT')
    assert.is(pair.source.fate(), 'doubt')
    assert.equal(await runningCopies(pair), { source: false, target: false })
    assert.is((await outcomeOf(pair.target.done)).code, 'MIGRATION_TIMEOUT')
    assert.is(pair.targetStates.at(-1), 'REFUSED')
    assert.equal(await runningCopies(pair), { source: false, target: false })
  },
  { skip },
)

test(
  'a target that has refused says so at every later meeting, and the source takes the VM back',
  async () => {
    let isCut = false
    await using pair = await migrationPair({
      grantPatienceMs: 1_000,
      patienceMs: 20_000,
      // Only meetings after the target has given up get through.
      passes: (_, attempt) => attempt === 1 || pair.targetStates.at(-1) === 'REFUSED',
      onSource: (state, { cut }) => {
        if (state !== 'RELINQUISHED' || isCut) return
        isCut = true
        cut()
      },
    })
    assert.is((await outcomeOf(pair.source.done)).code, 'MIGRATION_REFUSED')
    assert.is(pair.source.fate(), 'here')
    assert.equal(await runningCopies(pair), { source: true, target: false })
  },
  { skip },
)

test(
  'cancel is taken until the commit and is too late after it',
  async () => {
    const codes: string[] = []
    await using pair = await migrationPair({
      onSource: (state, { source }) => {
        if (state !== 'RELINQUISHED') return
        try {
          source.cancel()
        } catch (error) {
          codes.push(String((error as { code?: unknown }).code))
        }
      },
    })
    assert.is((await outcomeOf(pair.source.done)).report?.outcome, 'completed')
    assert.equal(codes, ['MIGRATION_LATE'])
    await using other = await migrationPair({
      onSource: (state, { source }) => {
        if (state === 'QUIESCED') source.cancel()
      },
    })
    assert.is((await outcomeOf(other.source.done)).code, 'MIGRATION_CANCELLED')
    assert.equal(await runningCopies(other), { source: true, target: false })
  },
  { skip },
)

test(
  'a target that is told to cancel with the grant in its hands gives the VM back; once it makes the VM its own it says MIGRATION_LATE',
  async () => {
    await using pair = await migrationPair({
      onTarget: (state, { target }) => {
        if (state === 'GRANTED') target.cancel()
      },
    })
    assert.is((await outcomeOf(pair.source.done)).code, 'MIGRATION_REFUSED')
    assert.is((await outcomeOf(pair.target.done)).code, 'MIGRATION_CANCELLED')
    assert.is(pair.targetStates.at(-1), 'REFUSED')
    assert.is(pair.committedEpoch(), undefined)
    assert.equal(await runningCopies(pair), { source: true, target: false })

    const codes: string[] = []
    await using other = await migrationPair({
      onTarget: async (state, { target }) => {
        if (state === 'RESUMING') codes.push(await codeOf(() => target.cancel()))
      },
    })
    assert.is((await outcomeOf(other.source.done)).report?.outcome, 'completed')
    assert.equal(codes, ['MIGRATION_LATE'])
    assert.equal(await runningCopies(other), { source: false, target: true })
  },
  { skip },
)

test.run()
