// Wrong versions of the protocol, each to be caught by the simulation. What can be wrong with a node's host is a wrong
// host that the node is given; the others change production's text (hooks.ts), which fails at once where it does not
// find that text. A mutant that no seed catches would mean that the simulation does not look, or that the line does not
// matter.
import type { NodeHost } from '../../../edge-node/node-host.ts'
import type { Store } from '../../../ops/store.ts'
import type { Patch } from './hooks.ts'

/**
 * `seed` has caught it (hunt.ts tries it first: seeds mean something else whenever production asks for other things in
 * another order).
 */
export type Mutant = {
  name: string
  says: string
  seed: number
  /** Kinds of faults (faults.ts) that alone can catch it: a rare one would be drawn in one of thousands of seeds. */
  focus?: readonly string[]
  patches: Patch[]
  /** The host that its nodes have. */
  host?: (host: NodeHost) => NodeHost
}

const SOURCE = 'edge-node/migration/source.ts'
const TARGET = 'edge-node/migration/target.ts'
const OWNERSHIP = 'edge-node/migration/ownership.ts'
const RECOVER = 'edge-node/migration/recover.ts'
const DURABLE = 'edge-node/migration/durable.ts'
const STATES = 'edge-node/migration/states.ts'
const NODE = 'edge-node/migrations.ts'
const ARRIVALS = 'edge-node/registry/arrivals.ts'
const VERDICT = 'gateway/handoff/verdict.ts'
const TRANSITIONS = 'gateway/handoff/transitions.ts'

const RECORD = '      await record(state)'

/** A record of the journal or of the registry. */
type Written = { state?: string; side?: string; resumePending?: boolean }

/** The store of this host says that these records are on the disk, and does not sync them. */
const withoutSync =
  (isOne: (record: Written) => boolean) =>
  (host: NodeHost): NodeHost => ({
    ...host,
    openStore: async (path, options) => {
      const store = await host.openStore(path, options)
      const isMeant = (value: unknown) => typeof value === 'object' && value !== null && isOne(value)
      const unsynced: Pick<Store, 'put' | 'batch'> = {
        put: (table, key, value, { sync = false } = {}) => store.put(table, key, value, { sync: sync && !isMeant(value) }),
        batch: (writes, { sync = false } = {}) =>
          store.batch(writes, { sync: sync && !writes.some(write => write.type === 'put' && isMeant(write.value)) }),
      }
      return { ...store, ...unsynced }
    },
  })

export const MUTANTS: Mutant[] = [
  {
    name: 'no-fsync-relinquished',
    says: 'RELINQUISHED is written without fsync',
    seed: 0,
    patches: [],
    host: withoutSync(({ state }) => state === 'RELINQUISHED'),
  },
  {
    name: 'no-fsync-granted',
    says: 'GRANTED, REFUSED and what else the target says are written without fsync',
    seed: 0,
    patches: [],
    host: withoutSync(({ side }) => side === 'target'),
  },
  {
    name: 'no-fsync-resuming',
    says: 'RESUMING, and the record by which the registry makes the VM its own, are written without fsync',
    seed: 84,
    patches: [],
    host: withoutSync(({ state, resumePending }) => state === 'RESUMING' || resumePending === true),
  },
  {
    name: 'grant-before-relinquished',
    says: 'GRANT is sent while RELINQUISHED is being written',
    seed: 163,
    patches: [
      {
        file: OWNERSHIP,
        find: RECORD,
        replace: `${RECORD.replace('await record', 'const written = record')}\n      if (state === 'RELINQUISHED') void written.catch(() => {})\n      else await written`,
      },
    ],
  },
  {
    name: 'run-before-resuming',
    says: 'the target sends cont before it has written that the VM is its own',
    seed: 0,
    patches: [
      {
        file: TARGET,
        find: '    await this.#becomeOwner()\n',
        replace: '    await vm.commands.cont()\n    await this.#becomeOwner()\n',
      },
    ],
  },
  {
    name: 'timeout-starts-the-vm',
    focus: ['agent killed', 'link cut', 'one-way cut', 'agent stopped for a while'],
    says: 'when no GRANT comes in time the target takes the VM',
    seed: 538,
    patches: [
      {
        file: TARGET,
        find: 'const grant = await within(this.#grant.promise, {',
        replace: 'const grant = await within(Promise.race([this.#grant.promise, sleepy(plan, this.#manifestHash!)]), {',
      },
      {
        file: TARGET,
        find: '\nclass TargetRun {\n',
        replace:
          "\nconst sleepy = (plan: TargetOptions['plan'], manifestHash: string) =>\n  new Promise<MessageOf<'GRANT'>>(resolve => setTimeout(() => resolve({ type: 'GRANT', vm: plan.vm, epoch: plan.epoch + 1, migrationId: plan.migrationId, manifestHash }), 300_000))\n\nclass TargetRun {\n",
      },
    ],
  },
  {
    name: 'source-resumes-in-doubt',
    says: 'a source that has relinquished and hears nothing takes the VM back',
    seed: 569,
    patches: [
      { file: STATES, find: "state !== 'RELINQUISHED' && state !== 'RETIRED'", replace: "state !== 'RETIRED'" },
      {
        file: STATES,
        find: "RELINQUISHED: { running: 'RETIRED', refused: 'RECLAIMED' }",
        replace: "RELINQUISHED: { running: 'RETIRED', refused: 'RECLAIMED', abort: 'ABORTED' }",
      },
    ],
  },
  {
    name: 'refuse-after-resuming',
    says: 'a target that has made the VM its own still refuses it',
    seed: 5,
    patches: [
      {
        file: TARGET,
        find: "    if (state === 'RUNNING' || state === 'RESUMING') return { type: 'RUNNING', resumeMs: 0 }\n",
        replace: '',
      },
      { file: TARGET, find: "    if (state === 'REFUSED') return refusal()\n", replace: '    return refusal()\n' },
    ],
  },
  {
    name: 'no-postmigrate',
    says: 'the source relinquishes without asking QEMU whether it can still resume by itself',
    seed: 36,
    patches: [{ file: SOURCE, find: '    await this.#qemu?.postmigrate()\n', replace: '' }],
  },
  {
    name: 'no-loaded',
    says: 'the source relinquishes when it has sent everything, without a LOADED',
    seed: 0,
    patches: [
      {
        file: SOURCE,
        find: "const loaded = await peer.expect(['LOADED'], { ms: options.loadTimeoutMs ?? LOAD_TIMEOUT_MS, what: 'LOADED from the target' })",
        replace: "const loaded = { type: 'LOADED' as const, manifestHash: [...sent][0]!, stateMs: 0, loadMs: 0 }",
      },
      { file: SOURCE, find: '    await this.#qemu?.postmigrate()\n', replace: '' },
    ],
  },
  {
    name: 'recover-takes-back',
    says: 'after a restart the source takes a VM back that it has relinquished',
    seed: 61,
    patches: [
      { file: RECOVER, find: "    if (record.state === 'RELINQUISHED') continue\n", replace: '' },
      { file: RECOVER, find: "record.state === 'QUIESCED'\n", replace: "record.state === 'QUIESCED' || record.state === 'RELINQUISHED'\n" },
      { file: RECOVER, find: 'hanging.length > 0 || isGone).catch', replace: 'false).catch' },
    ],
  },
  {
    name: 'plan-said-twice',
    focus: ['the gateway lies'],
    says: 'a migration that has been here before may begin once more',
    seed: 73,
    patches: [
      {
        file: NODE,
        find: 'if (await journal.knows(migrationId, side)) throw',
        replace: 'if ((await journal.knows(migrationId, side)) && !side) throw',
      },
    ],
  },
  {
    name: 'reclaimed-at-the-old-epoch',
    says: 'a VM that is taken back keeps the epoch that was offered',
    seed: 11,
    patches: [{ file: SOURCE, find: 'RECLAIMED: 2 }', replace: 'RECLAIMED: 0 }' }],
  },
  {
    name: 'gateway-believes-the-target',
    says: 'the gateway takes a failed source for a VM that has moved',
    seed: 11,
    patches: [
      { file: VERDICT, find: "return target === 'completed' ? 'contradiction' : 'sourceFailed'", replace: "return 'bothCompleted'" },
    ],
  },
  {
    name: 'gateway-forgets-sessions',
    says: 'after a restart the gateway lets the sites of a migration meet no more',
    seed: 5,
    patches: [
      { file: TRANSITIONS, find: "restart: go('COMMIT_SEEN', 'openSession')", replace: "restart: go('COMMIT_SEEN')" },
      { file: TRANSITIONS, find: "restart: go('STREAMING', 'openSession')", replace: "restart: go('STREAMING')" },
      {
        file: 'gateway/handoff/migrations.ts',
        find: '    if (plan) this.#options.sessions.open(plan, { isHandover: true })\n',
        replace: '',
      },
    ],
  },
  {
    name: 'old-epochs-accepted',
    says: 'a plan of an epoch that has passed is taken for the present, by the source and by the target',
    seed: 0,
    patches: [
      { file: NODE, find: '    if (epoch !== plan.epoch) throw', replace: '    if (epoch < plan.epoch) throw' },
      {
        file: ARRIVALS,
        find: 'async reserve(spec: VmSpec, epoch: number, accelerator: Accelerator, { signal, usesCopy }: ReserveOptions): Promise<RunningVm> {\n',
        replace:
          'async reserve(spec: VmSpec, _: number, accelerator: Accelerator, { signal, usesCopy }: ReserveOptions): Promise<RunningVm> {\n    const epoch = Infinity\n',
      },
      { file: ARRIVALS, find: '      if (epoch <= entry.record.epoch) throw', replace: '      if (epoch < 0) throw' },
    ],
  },
  {
    name: 'refuse-without-refused',
    focus: ['disk fails at a record', 'disk refuses'],
    says: 'a target whose disk refuses REFUSED says REFUSE all the same, at once',
    seed: 21,
    patches: [
      { file: DURABLE, find: 'const TRIES = 10', replace: 'const TRIES = 1' },
      {
        file: TARGET,
        find: '      return !wasLoaded\n',
        replace: "      own.state = 'REFUSED'\n      return true\n",
      },
    ],
  },
  {
    name: 'refused-record-refuses',
    focus: ['disk fails at a record', 'disk refuses'],
    says: 'a target whose disk refuses the record that makes the VM its own takes that for the end of the VM here',
    seed: 703,
    patches: [
      { file: DURABLE, find: 'const TRIES = 10', replace: 'const TRIES = 1' },
      { file: TARGET, find: "        this.#isInDoubt ||= hasCode(error, 'STORE_FAILED')\n", replace: '' },
    ],
  },
]
