// One small world: two or three sites, a gateway, a VM. Enters: orders and faults. Leaves: what production makes of
// them, watched by the invariants.
import { createRoot, decodeCertificate, issueCertificate, newSerial, type SubjectRole } from '../../../crypto/certificate.ts'
import { generateSiteKeys, loadSodium } from '../../../crypto/identity.ts'
import type { Plan } from '../../../wire/control.ts'
import { Agent, GatewayProcess, type Production } from './agents.ts'
import { resetSockets } from './fakes/net.ts'
import { createHost, type Host, VM } from './host.ts'
import { watchInvariants } from './invariants.ts'
import { Network } from './network.ts'
import { resetQemu } from './qemu.ts'
import { resetStage, say, stage } from './stage.ts'
import { EPOCH_MS, nowMs, resetTime, runEvents, runIn } from './time.ts'

const SPEC = `name: ${VM}\nmemory: 32MiB\nmachine: pc-i440fx-9.0\ndisks: [{ file: boot.img, mode: readonly, format: raw }]\nserial: false\n`

export type Asked = { site: string; what: 'prepare' | 'start'; params: { plan: Plan } & Record<string, unknown> }

export type World = {
  /** The VM begins at the first. */
  sites: readonly string[]
  agents: Map<string, Agent>
  gateway: GatewayProcess
  network: Network
  /** All that the gateway ever asked of sites, for a liar to say again. */
  asked: Asked[]
  /** The gateway has lied, or lost its database: its own record counts for nothing. */
  tampered: boolean
  /** No fault strikes any more. */
  healed: boolean
  agent(site: string): Agent
  hosts(): Host[]
  /** Runs for so long, or until it is so. */
  run(ms: number, done?: () => boolean): Promise<void>
  events: number
}

let identities: Map<string, Host['identity']> | undefined

async function identityOf(name: string, role: SubjectRole): Promise<Host['identity']> {
  await loadSodium()
  identities ??= new Map()
  const known = identities.get(name)
  if (known) return known
  const keys = generateSiteKeys()
  const seconds = Math.floor(EPOCH_MS / 1000)
  const times = { notBefore: seconds - 864_000, notAfter: seconds + 864_000, serial: newSerial() }
  root ??= createRoot()
  const certificate = issueCertificate(root, { role, id: name, signPublic: keys.signPublic, boxPublic: keys.boxPublic, ...times })
  const identity = { keys, certificate, rootPublic: root.signPublic, claims: decodeCertificate(certificate) }
  identities.set(name, identity)
  return identity
}
let root: ReturnType<typeof createRoot> | undefined

/** An empty world at time 0. */
export async function createWorld(production: Production, seed: number | string, sites = ['a', 'b']): Promise<World> {
  const { random } = resetStage(seed)
  const chance = random.fork('jitter')
  resetTime(() => chance.next())
  resetQemu()
  resetSockets()
  const asked: Asked[] = []
  const network = new Network((site, what, params) => asked.push({ site, what, params }))
  const agents = new Map<string, Agent>()
  for (const site of sites) {
    const host = createHost(site)
    host.identity = await identityOf(site, 'site')
    agents.set(site, new Agent(host, network, production))
  }
  const gatewayHost = createHost('gateway')
  gatewayHost.identity = await identityOf('gw', 'gateway')
  const world: World = {
    sites,
    agents,
    gateway: new GatewayProcess(gatewayHost, network, production),
    network,
    asked,
    tampered: false,
    healed: false,
    agent: site => agents.get(site)!,
    hosts: () => [...agents.values()].map(({ host }) => host),
    events: 0,
    async run(ms, done = () => false) {
      const over = () => stage().violation !== undefined || done()
      world.events += await runEvents(nowMs() + ms, () => {}, over)
      if (stage().violation) throw stage().violation
    },
  }
  watchInvariants(world)
  return world
}

/** Everybody is up, the VM runs at site a with epoch 1. */
export async function begin(world: World): Promise<void> {
  world.gateway.start()
  for (const agent of world.agents.values()) agent.start()
  const up = () => [...world.agents.values()].every(({ node }) => node?.link.state === 'online')
  await world.run(60_000, up)
  order(world, 'a', async node => {
    await node.registry.create(SPEC)
    await node.registry.start(VM)
  })
  await world.run(10_000, () => world.gateway.gateway?.control.vms().some(({ state }) => state === 'running') === true)
}

type NodeOf = NonNullable<Agent['node']>

/** A person at a site. What fails is only said. */
export function order(world: World, site: string, give: (node: NodeOf) => Promise<unknown>): void {
  const { node, process } = world.agent(site)
  if (!node || !process?.alive) return
  runIn(process, () => {
    give(node).then(
      () => {},
      error => say(`order refused: ${error}`),
    )
  })
}

/** A person at the gateway. */
export function request(world: World, to: string, method: 'live' | 'cold'): void {
  const { gateway, process } = world.gateway
  if (!gateway || !process?.alive) return
  runIn(process, () => {
    say(`asked to move the VM to ${to}`)
    gateway.control.start({ vm: VM, to, method, streams: 1 }).then(
      id => say(`migration ${id.slice(0, 6)} begins`),
      error => say(`refused: ${error}`),
    )
  })
}

export function cancel(world: World): void {
  const { gateway, process } = world.gateway
  if (!gateway || !process?.alive) return
  runIn(process, () => {
    const [newest] = gateway.control.migrations()
    if (!newest) return
    say(`asked to cancel ${newest.migrationId.slice(0, 6)}`)
    gateway.control.cancel(newest.migrationId).then(
      () => say('cancelled'),
      error => say(`not cancelled: ${error}`),
    )
  })
}
