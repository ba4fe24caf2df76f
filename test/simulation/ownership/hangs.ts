// Production that hangs: an await that never comes back and listens to no signal, at one point of a migration's story.
// Only the watchdog can end that. Each hangs only in the first moments of a run, so that what comes after the healing
// shows whether the VM is free again. `unwatched` is the same without the watchdog: some seed must then end in a
// breach, or the hang shows nothing.
import type { Mutant } from './mutants.ts'

const SOURCE = 'edge-node/migration/source.ts'
const TARGET = 'edge-node/migration/target.ts'
const RUN_SOURCE = 'edge-node/run-source.ts'
const WATCH = 'edge-node/watch-slots.ts'
const GATEWAY = 'gateway/handoff/interpreter.ts'

/** Until then, virtual ms. */
const EARLY_MS = 450
const FOREVER = `performance.now() < ${EARLY_MS} ? new Promise(() => {}) : `

/** A QEMU that waits for a VM does not answer to one command. */
const silentQemu = (name: string, says: string, command: 'cont' | 'activateDisks'): Mutant => ({
  ...{ name, says, seed: 0, patches: [] },
  host: host => ({
    ...host,
    vms: {
      ...host.vms,
      async startMachine(options) {
        const vm = await host.vms.startMachine(options)
        if (!options.incoming) return vm
        const { [command]: real } = vm.commands
        const answer = () => (performance.now() < EARLY_MS ? new Promise<never>(() => {}) : real())
        return Object.assign(vm, { commands: { ...vm.commands, [command]: answer } })
      },
    },
  }),
})

const hang = (name: string, says: string, file: string, statement: string): Mutant => {
  const [before = '', after = ''] = statement.split('await ')
  return { name, says, seed: 0, patches: [{ file, find: statement, replace: `${before}await (${FOREVER}${after})` }] }
}

export const HANGS: Mutant[] = [
  hang(
    'hang-needs',
    "the source's reading of files",
    RUN_SOURCE,
    'const needs = await registry.needs(plan.vm, plan.method, { ...how, start: plan.start })',
  ),
  hang('hang-offered', "the source's opening of the conversation", SOURCE, 'const talk = await this.#openTalk()'),
  hang('hang-streaming', 'the source while it streams', SOURCE, 'await allSent'),
  hang('hang-quiesced', 'the source before the commit', SOURCE, 'await options.checkPeer?.()'),
  hang(
    'hang-relinquished',
    'the source after the commit',
    SOURCE,
    'const { answer, peer: last } = await handOver({ ...this.#options, plan, stop }, talk.peer, grant)',
  ),
  hang('hang-reserved', "the target's start of QEMU", TARGET, 'const reserved = await options.reserve(offer, plan, { ...how, askImages })'),
  hang('hang-receiving', 'the target while it receives', TARGET, 'await this.#receive(corridor, peer, vm, shut || undefined)'),
  silentQemu('hang-granted', "the target's disks", 'activateDisks'),
  silentQemu('hang-resuming', "the target's cont", 'cont'),
  hang(
    'hang-gateway',
    "the gateway's asking of the target",
    GATEWAY,
    "await target.rpc.request('migration.prepare', { plan, sourceCertificate }, { timeoutMs: PREPARE_MS })",
  ),
]

const NO_WATCHDOG = [
  { file: WATCH, find: 'watch.step(performance.now(), slots.watched())', replace: 'void watch' },
  { file: 'gateway/gateway.ts', find: 'watched.watch(performance.now())', replace: 'void watched' },
]

export const UNWATCHED: Mutant[] = HANGS.map(mutant => ({
  ...mutant,
  ...{ name: `${mutant.name}-unwatched`, says: `${mutant.says}, and there is no watchdog` },
  patches: [...mutant.patches, ...NO_WATCHDOG],
}))
