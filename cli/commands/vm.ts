// godwit vm: the VMs of this host's node, over its unix socket.
import { formatBytes } from '../../ops/units.ts'
import type { VmFacts } from '../../wire/control.ts'
import { type ErrorBody, GodwitError } from '../../wire/errors.ts'
import type { CopyView } from '../../wire/node-api.ts'
import { askNode, nodeTarget } from '../client.ts'
import { type CliCommand, command, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { json, listing, table } from '../output.ts'

const common = { json: shared.json, socket: shared.socket } as const
const name = { name: 'NAME', help: 'name of the VM' } as const
const pathOf = (vm: string, action = '') => `/v1/vms/${encodeURIComponent(vm)}${action}`
/** Deadline for the start of QEMU. */
const SLOW_MS = 90_000

const post = (io: Io, flags: { socket?: string | undefined }, path: string, body?: unknown) =>
  askNode<Record<string, unknown>>(io, flags, { method: 'POST', path, body, timeoutMs: SLOW_MS })

const create = command({
  name: 'vm create',
  summary: 'create a VM from a specification',
  details: 'The specification is YAML (see examples/); kernel, initrd and disks are file names in the images folder of the node.',
  positionals: [{ name: 'FILE', help: 'specification, or - for stdin' }],
  options: { start: { kind: 'flag', help: 'start the VM after creating it' }, ...common },
  examples: ['godwit vm create examples/vm-linux.yaml --start'],
  run: async ({ options, args, io }) => {
    const spec = args[0] === '-' ? await readStream(io.input) : await (await import('../../ops/files.ts')).readText(args[0]!)
    const vm = await post(io, options, '/v1/vms', { spec })
    if (Array.isArray(vm['warnings'])) for (const warning of vm['warnings']) io.err(`warning: ${warning}\n`)
    if (options.start) await post(io, options, pathOf(String(vm['name']), '/start'))
    io.out(options.json ? json(vm) : `created ${vm['name']}${options.start ? ' and started it' : ''}\n`)
    return 0
  },
})

const start = command({
  name: 'vm start',
  summary: 'start a VM',
  details:
    'A paused VM continues, and a suspended guest is woken. A VM in doubt (MIGRATION_DOUBT: it was handed over, and the other site has not confirmed it) is not started: it may run there, and two running copies ' +
    'destroy its data. No flag overrides this, only a fencing statement: see godwit recover.',
  positionals: [name],
  options: {
    force: { kind: 'flag', help: 'for a VM that may run at another site: fail with FENCING_REQUIRED and show which proof is needed' },
    ...common,
  },
  examples: ['godwit vm start web-1'],
  run: async ({ options, args, io }) => {
    const answer = await post(io, options, pathOf(args[0]!, '/start'), options.force ? { force: true } : undefined)
    io.out(options.json ? json(answer) : `started ${args[0]}\n`)
    return 0
  },
})

const STOP_SECONDS = 120

const stop = command({
  name: 'vm stop',
  summary: 'shut a VM down',
  details:
    'Presses the power button (a suspended guest is woken first) and waits until the guest has shut down. If it does not shut down in time, it keeps running ' +
    'and the command fails with STOP_TIMEOUT. --force ends it at once: the guest loses what it has not written to disk.',
  positionals: [name],
  options: {
    timeout: { kind: 'integer', value: 'SECONDS', min: 1, max: 3600, help: `how long to wait for the guest (default ${STOP_SECONDS})` },
    force: { kind: 'flag', help: 'end QEMU at once, without a shutdown of the guest' },
    ...common,
  },
  examples: ['godwit vm stop web-1', 'godwit vm stop web-1 --timeout 300', 'godwit vm stop web-1 --force'],
  run: async ({ options, args, io }) => {
    const { force, timeout = STOP_SECONDS } = options
    if (force && options.timeout !== undefined)
      throw new GodwitError('USAGE', '--timeout and --force exclude each other: --force does not wait for the guest')
    const timeoutMs = 1000 * timeout
    const answer = await askNode<unknown>(io, options, {
      ...{ method: 'POST', path: pathOf(args[0]!, '/stop'), timeoutMs: timeoutMs + SLOW_MS },
      body: force ? { force } : { timeoutMs },
    })
    io.out(options.json ? json(answer) : `stopped ${args[0]}\n`)
    return 0
  },
})

const wake = command({
  name: 'vm wake',
  summary: 'wake a VM whose guest is suspended (ACPI S3)',
  positionals: [name],
  options: common,
  examples: ['godwit vm wake web-1'],
  run: async ({ options, args, io }) => {
    const answer = await post(io, options, pathOf(args[0]!, '/wake'))
    io.out(options.json ? json(answer) : `woke ${args[0]}\n`)
    return 0
  },
})

const list = command({
  name: 'vm list',
  summary: 'list the VMs of this node',
  options: common,
  examples: ['godwit vm list'],
  run: async ({ options, io }) => {
    const { vms } = await askNode<{ vms: VmFacts[] }>(io, options, { path: '/v1/vms' })
    const stateOf = (vm: VmFacts & { failure?: ErrorBody }) => (vm.failure ? `${vm.state} (${vm.failure.code})` : vm.state)
    const rows = vms.map(vm => [vm.name, stateOf(vm), formatBytes(vm.memoryBytes), vm.vcpus, vm.epoch])
    io.out(options.json ? json(vms) : table(['VM', 'STATE', 'MEMORY', 'VCPUS', 'EPOCH'], rows, 'no VMs'))
    return 0
  },
})

const show = command({
  name: 'vm show',
  summary: 'show the details of a VM',
  positionals: [name],
  options: common,
  examples: ['godwit vm show web-1 --json'],
  run: async ({ options, args, io }) => {
    const vm = await askNode<Record<string, unknown>>(io, options, { path: pathOf(args[0]!) })
    if (options.json) io.out(json(vm))
    else {
      const { spec, ...facts } = vm
      io.out(listing(Object.entries(facts).map(([key, value]) => [key, typeof value === 'string' ? value : JSON.stringify(value)])))
      if (spec !== undefined) io.out(`\n${typeof spec === 'string' ? spec : json(spec)}`)
    }
    return 0
  },
})

const attach = command({
  name: 'vm console',
  summary: 'attach to the serial console of a VM',
  details: 'Shows the last 64 KiB of output, then follows it. Your input goes to the guest. Ctrl-] exits.',
  positionals: [name],
  options: { socket: shared.socket },
  examples: ['godwit vm console web-1'],
  run: async ({ options, args, io }) => {
    const { attachConsole } = await import('../console.ts')
    return await attachConsole(io, { ...(await nodeTarget(io, options)), path: pathOf(args[0]!, '/console') })
  },
})

const display = command({
  name: 'vm display',
  summary: 'show how to connect to the screen of a VM',
  details: 'The VM needs display: true in its specification. A viewer connects again after a migration, at the new site.',
  positionals: [name],
  options: common,
  examples: ['godwit vm display web-1'],
  run: async ({ options, args, io }) => {
    const answer = await askNode<{ name: string; socket: string }>(io, options, { path: pathOf(args[0]!, '/display') })
    const { socket } = answer
    const help = `at this host:    vncviewer ${socket}\nfrom elsewhere:  ssh -L 5900:${socket} root@HOST, then vncviewer localhost:5900\n`
    io.out(options.json ? json(answer) : `VNC socket:      ${socket}\n${help}`)
    return 0
  },
})

const remove = command({
  name: 'vm delete',
  summary: 'delete a stopped VM',
  details: 'Removes its specification, its state and its local disks from the node. Images are kept.',
  positionals: [name],
  options: common,
  examples: ['godwit vm delete web-1'],
  run: async ({ options, args, io }) => {
    const answer = await askNode<unknown>(io, options, { method: 'DELETE', path: pathOf(args[0]!) })
    io.out(options.json ? json(answer) : `deleted ${args[0]}\n`)
    return 0
  },
})

const copies = command({
  name: 'vm copies',
  summary: 'list the warm copies of this node',
  details:
    'A warm copy is what the node keeps of the local disks of a VM that has moved away, or whose coming has failed. When the VM comes (again), only changed chunks travel. ' +
    'Copies are removed after limits.copyDays of node.yaml, and the oldest first when the file system is full.',
  options: common,
  examples: ['godwit vm copies'],
  run: async ({ options, io }) => {
    const { copies: found } = await askNode<{ copies: CopyView[] }>(io, options, { path: '/v1/copies' })
    const rows = found.map(({ vm, epoch, why, peer, at, bytes }) => [
      ...[vm, String(epoch), formatBytes(bytes), formatAge(Date.now() - at)],
      why === 'left' ? `left for ${peer}` : `interrupted, from ${peer}`,
    ])
    io.out(options.json ? json(found) : table(['VM', 'EPOCH', 'ON DISK', 'AGE', 'WHY'], rows, 'no copies'))
    return 0
  },
})

const removeCopy = command({
  name: 'vm copies remove',
  summary: 'remove a warm copy',
  details: 'All chunks of the disks travel when the VM comes again.',
  positionals: [{ name: 'VM', help: 'name of the VM' }],
  options: common,
  examples: ['godwit vm copies remove web-1'],
  run: async ({ options, args, io }) => {
    const answer = await askNode<unknown>(io, options, { method: 'DELETE', path: `/v1/copies/${encodeURIComponent(args[0]!)}` })
    io.out(options.json ? json(answer) : `removed the warm copy of ${args[0]}\n`)
    return 0
  },
})

const formatAge = (ms: number): string => {
  const minutes = Math.floor(ms / 60_000)
  return minutes < 120 ? `${minutes} min` : minutes < 2880 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} d`
}

async function readStream(stream: AsyncIterable<unknown>): Promise<string> {
  let text = ''
  for await (const chunk of stream) {
    text += String(chunk)
    if (text.length > 1024 * 1024) break
  }
  return text
}

export const vmCommands: CliCommand[] = [create, start, stop, wake, list, show, attach, display, remove, copies, removeCopy]
