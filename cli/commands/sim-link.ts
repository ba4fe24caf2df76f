// godwit sim link: an emulated link between two network namespaces, until it is interrupted.
import type { DirectionStats, PacketLink, PacketLinkStats } from '../../sim-network/packet-link.ts'
import { GodwitError } from '../../wire/errors.ts'
import { command, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { json, table } from '../output.ts'

export const simLink = command({
  name: 'sim link',
  summary: 'create an emulated link between two network namespaces (root)',
  details:
    'Rate, delay, jitter, loss, queue and blackouts apply to every IP packet of any protocol. Up is from the first namespace to the second. ' +
    'The link runs until SIGINT or SIGTERM; then the command removes it (and the namespaces that --create made) and prints statistics. ' +
    'It uses the link model of sim-network/link.ts and needs root, TUN, iproute2 and (once) a C compiler.\n\n' +
    'Sizes are those of IP packets. Without --queue the queue holds one bandwidth-delay product, at least 32 packets; a profile sets its own.',
  positionals: [{ name: 'OTHER', help: 'second namespace, if --between names only the first', optional: true }],
  options: {
    between: { kind: 'text', value: 'NS_A NS_B', help: 'the two network namespaces (also NS_A,NS_B)', required: true },
    profile: { kind: 'text', value: 'NAME', help: 'named link of sim-network/profiles.ts; the options below override its values' },
    rate: { kind: 'text', value: 'MBIT', help: 'Mbit/s, such as 100, or up/down: 20/100' },
    trace: { kind: 'path', value: 'FILE', help: 'recorded rate trace in the format of mahimahi, for both directions' },
    rtt: { kind: 'duration', value: 'TIME', help: 'round-trip time, half of it in each direction (default 0ms)' },
    jitter: { kind: 'duration', value: 'TIME', help: 'variation of the delay in each direction, plus or minus, without reordering' },
    loss: { kind: 'text', value: 'PERCENT', help: 'random loss in each direction, such as 0.5%' },
    queue: { kind: 'size', value: 'SIZE', help: 'queue size of each direction' },
    blackout: { kind: 'text', value: 'START/LENGTH[/EVERY]', help: 'times without any delivery: START/DURATION/EVERY, such as 4s/1s/20s' },
    create: { kind: 'flag', help: 'create the two namespaces, and remove them at the end' },
    seed: { kind: 'text', value: 'TEXT', help: 'seed of the random numbers: the same seed loses the same packets (default 1)' },
    json: shared.json,
  },
  examples: [
    'godwit sim link --profile wan-continental --create --between left right',
    'godwit sim link --rate 100 --rtt 40ms --loss 0.5% --between left right --json',
  ],
  run: async ({ options, args, io }) => {
    const [{ linkOf }, { startPacketLink }, { createNamespace, needNamespaces }] = await Promise.all([
      import('../sim/link-wish.ts'),
      import('../../sim-network/packet-link.ts'),
      import('../../sim-network/namespaces.ts'),
    ])
    const between = namesOf(options.between, args[0])
    const both = await linkOf(options)
    needNamespaces()
    await using stack = new AsyncDisposableStack()
    const interrupted = new Promise<void>(resolve => stack.defer(io.onInterrupt(() => resolve())))
    if (options.create) for (const name of between) stack.use(await createNamespace(name))
    const link = stack.use(await startPacketLink({ between, ...both, seed: options.seed ?? 1 }))
    tellReady(io, link, between)
    await Promise.race([interrupted, link.failed])
    const stats = await link.close()
    io.out(options.json ? json({ between, seconds: stats.atMs / 1000, up: stats.ab, down: stats.ba }) : passed(stats))
    return 0
  },
})

function namesOf(between: string, other: string | undefined): [string, string] {
  const names = [...between.split(','), ...(other === undefined ? [] : [other])]
  const [a, b] = names
  if (names.length !== 2 || !a || !b || a === b)
    throw new GodwitError('USAGE', '--between needs the names of two network namespaces', { hint: 'see godwit sim link --help' })
  return [a, b]
}

function tellReady(io: Io, { addresses, isRealTime }: PacketLink, [a, b]: readonly [string, string]): void {
  io.err(`the link is up: ${addresses[0]} in ${a}, ${addresses[1]} in ${b}\n`)
  io.err(`try: ip netns exec ${a} ping ${addresses[1]}\n`)
  if (!isRealTime) io.err('the driver has no real-time priority: a busy machine will delay packets\n')
}

function passed({ atMs, ab, ba }: PacketLinkStats): string {
  const row = (name: string, { link, lateMsMax }: DirectionStats) => {
    const { queue, loss, blackout, mtu, cut } = link.droppedPackets
    const megabits = (link.deliveredBytes * 8) / 1000 / Math.max(1, atMs)
    return [
      name,
      link.enteredPackets,
      link.deliveredPackets,
      megabits.toFixed(2),
      queue,
      loss,
      blackout,
      mtu + cut,
      `${lateMsMax.toFixed(1)} ms`,
    ]
  }
  const head = ['', 'packets in', 'out', 'Mbit/s', 'queue full', 'lost', 'blackout', 'other', 'latest']
  return table(head, [row('up', ab), row('down', ba)])
}
