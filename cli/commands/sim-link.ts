// godwit sim link: a modelled link between two network namespaces, until it is interrupted.
import type { DirectionStats, PacketLink, PacketLinkStats } from '../../sim-network/packet-link.ts'
import { GodwitError } from '../../wire/errors.ts'
import { command, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { json, table } from '../output.ts'

export const simLink = command({
  name: 'sim link',
  summary: 'lay a modelled link between two network namespaces (root)',
  details:
    'Any protocol passes: rate, delay, jitter, loss, queue and blackouts meet every IP packet. Up is from the first namespace to the second. ' +
    'It stands until SIGINT or SIGTERM and then says what passed; the devices go with it, and so do namespaces that --create made. ' +
    'Its arithmetic is that of the link model in sim-network/link.ts; it needs root, TUN, iproute2 and (once) a C compiler.\n\n' +
    'Sizes are those of IP packets. Without --queue the queue holds one bandwidth-delay product, at least 32 packets; a profile has its own.',
  positionals: [{ name: 'OTHER', help: 'the second namespace, where --between names only the first', optional: true }],
  options: {
    between: { kind: 'text', value: 'NS_A NS_B', help: 'the two network namespaces (also NS_A,NS_B)', required: true },
    profile: { kind: 'text', value: 'NAME', help: 'a named link, see sim-network/profiles.ts; what follows changes it' },
    rate: { kind: 'text', value: 'MBIT', help: 'Mbit/s, such as 100, or up/down: 20/100' },
    trace: { kind: 'path', value: 'FILE', help: 'rate by a recorded trace in the format of mahimahi, both directions' },
    rtt: { kind: 'duration', value: 'TIME', help: 'round trip, half of it each way (default 0ms)' },
    jitter: { kind: 'duration', value: 'TIME', help: 'each way the delay wanders by so much to either side, without reordering' },
    loss: { kind: 'text', value: 'PERCENT', help: 'random loss, each way, such as 0.5%' },
    queue: { kind: 'size', value: 'SIZE', help: 'bytes that may wait in each direction' },
    blackout: { kind: 'text', value: 'START/LENGTH[/EVERY]', help: 'times at which nothing passes, such as 4s/1s/20s' },
    create: { kind: 'flag', help: 'make the two namespaces first, and remove them at the end' },
    seed: { kind: 'text', value: 'TEXT', help: 'of the random numbers: the same seed loses the same packets (default 1)' },
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
  io.err(`the link stands: ${addresses[0]} in ${a}, ${addresses[1]} in ${b}\n`)
  io.err(`try: ip netns exec ${a} ping ${addresses[1]}\n`)
  if (!isRealTime) io.err('the driver has no real-time priority here: a busy machine will delay packets\n')
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
