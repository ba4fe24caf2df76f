// The processes: an agent on each site's host, a gateway on its own. Enters: start, kill, power. Leaves: what
// production then does.
// Always holds: one process of a kind on a host; a killed one leaves its QEMUs running, its disk as the kernel had it,
// its sockets closed.
import type { Node } from '../../../edge-node/agent.ts'
import type { NodeConfig } from '../../../edge-node/config.ts'
import type { NodeHost } from '../../../edge-node/node-host.ts'
import type { Gateway, GatewayHost } from '../../../gateway/gateway.ts'
import { createSessions, type Sessions } from '../../../gateway/relay/sessions.ts'
import { systemClock } from '../../../ops/clock.ts'
import { dropSocketsOf } from './fakes/net.ts'
import { nodeHost } from './fakes/node-host.ts'
import { openStore } from './fakes/store.ts'
import type { Host, HostProcess } from './host.ts'
import type { Network } from './network.ts'
import { say, stage, traceLog } from './stage.ts'
import { later, runIn } from './time.ts'

/** `nodeHost`: in place of the one that all nodes have here. */
export type Production = typeof import('./production.ts') & { nodeHost?: NodeHost }

const configOf = (site: string): NodeConfig =>
  ({
    site,
    stateDir: '/state',
    runDir: '/run',
    imagesDir: '/images',
    gateway: { id: 'gw', host: 'gateway', ports: { quic: 1, tls: 'off', webtransport: 'off' } },
    transport: 'auto',
    identity: { keys: '-', certificate: '-', root: '-' },
    api: { socket: '/run/api' },
    log: { level: 'info', format: 'json' },
    limits: { memoryReserve: 0, reconnectSeconds: 30, switchoverSeconds: 2 },
    qemu: { users: 'off' },
    commandKeys: {},
    commandTenant: 'main',
  }) as NodeConfig

/** A site's agent, through its lives. */
export class Agent {
  readonly host: Host
  process: HostProcess | undefined
  node: Node | undefined
  lives = 0
  readonly #network: Network
  readonly #production: Production

  constructor(host: Host, network: Network, production: Production) {
    this.host = host
    this.#network = network
    this.#production = production
  }

  get alive(): boolean {
    return this.process?.alive === true
  }

  start(): void {
    if (this.alive) return
    const process: HostProcess = { name: this.host.name, alive: true, host: this.host }
    this.process = process
    this.node = undefined
    this.lives += 1
    const { startNode, nodeHost: host = nodeHost } = this.#production
    runIn(process, () => {
      say('agent starts')
      const engines = [this.#network.dialling(process, this.host.name)]
      const onBroken = () => this.#endSoon(process)
      startNode({ config: configOf(this.host.name), host, engines, version: '1', log: traceLog, onBroken }).then(
        node => {
          this.node = node
        },
        error => {
          say(`agent ends: ${error}`)
          this.kill(true)
        },
      )
    })
  }

  /**
   * The command ends, and is started anew, after a write that failed (cli/commands/node.ts); how long it lives on until
   * then is anybody's guess.
   */
  #endSoon(process: HostProcess): void {
    const { random } = stage()
    const nature = { name: 'service manager', alive: true, host: this.host }
    later(nature, random.chance(0.5) ? random.between(0, 100) : random.between(100, 60_000), () => {
      if (this.process !== process) return
      this.kill(true)
      later(nature, random.between(100, 5_000), () => this.start())
    })
  }

  /** kill -9. `loud`: its peers are told by the kernel. */
  kill(loud: boolean): void {
    const { process } = this
    if (!process?.alive) return
    runIn(process, () => say(`agent is killed${loud ? '' : ', silently'}`))
    process.alive = false
    this.node = undefined
    dropSocketsOf(process)
    for (const [path, { process: owner }] of [...this.host.sockets]) if (owner === process) this.host.sockets.delete(path)
    this.#network.died(process, loud)
  }

  /** The host loses power: agent and QEMUs are gone, what was not synced too. */
  powerLoss(): void {
    this.kill(false)
    for (const qemu of this.host.qemus) qemu.end('fault')
    losePower(this.host)
  }
}

function losePower(host: Host): void {
  host.disk.powerLoss()
  host.boots += 1
  host.bootId = `${host.name}-boot-${host.boots}`
  say(`power loss of ${host.name}`)
}

/** The gateway's process, through its lives. */
export class GatewayProcess {
  readonly host: Host
  process: HostProcess | undefined
  gateway: Gateway | undefined
  /** Its leave for sites to meet. */
  sessions: Sessions | undefined
  readonly #network: Network
  readonly #production: Production
  heartbeat = { heartbeatMs: 5_000, silenceMs: 15_000 }

  constructor(host: Host, network: Network, production: Production) {
    this.host = host
    this.#network = network
    this.#production = production
  }

  get alive(): boolean {
    return this.process?.alive === true
  }

  start(): void {
    if (this.alive) return
    const process: HostProcess = { name: 'gateway', alive: true, host: this.host }
    this.process = process
    runIn(process, () => {
      say('gateway starts')
      this.#run(process).catch(error => {
        say(`gateway ends: ${error}`)
        this.kill(true)
      })
    })
  }

  async #run(process: HostProcess): Promise<void> {
    const engine = this.#network.listening(process)
    this.sessions = createSessions(systemClock)
    this.gateway = await this.#production.startGateway({
      identity: this.host.identity!,
      rootPublic: this.host.identity!.rootPublic,
      version: '1',
      listen: [{ engine, host: 'gateway', port: 1 }],
      admin: { host: 'gateway', port: 2, token: '' },
      store: await openStore(),
      sessions: this.sessions,
      host: GATEWAY_HOST,
      log: traceLog,
      heartbeat: this.heartbeat,
    })
  }

  kill(loud: boolean): void {
    const { process } = this
    if (!process?.alive) return
    runIn(process, () => say(`gateway is killed${loud ? '' : ', silently'}`))
    process.alive = false
    this.gateway = undefined
    this.#network.died(process, loud)
  }

  powerLoss(): void {
    this.kill(false)
    losePower(this.host)
  }
}

const GATEWAY_HOST: GatewayHost = {
  newId: () => hex(4),
  serveHttp: async () => ({ address: { host: 'none', port: 0 }, close: async () => {} }),
}
const hex = (words: number) => Array.from({ length: words }, () => stage().random.uint32().toString(16).padStart(8, '0')).join('')

/** Half of all deaths are silent: a QUIC endpoint in user space says nothing when it is killed. */
export const isLoud = (): boolean => stage().random.chance(0.5)
