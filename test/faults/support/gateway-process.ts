// A gateway as a process of its own (`godwit gateway`), for cases in which it is killed or loses its database. Its
// ports stay the same over restarts.
import { cp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Root } from '../../../crypto/certificate.ts'
import { encodeKeys } from '../../../crypto/identity.ts'
import { eventually } from '../../../ops/deadline.ts'
import { armor } from '../../../ops/files.ts'
import { requestJson } from '../../../ops/http-client.ts'
import { toYaml } from '../../../ops/yaml.ts'
import { identityOf } from '../../gateway/fixture.ts'
import { freePort } from '../../gateway/fronts/mqtt/support.ts'
import type { GatewayKeeper } from '../../support/lab.ts'
import { spawnGodwit } from '../../support/lab-site.ts'
import { listFileOf } from '../../support/revocations.ts'

const HOST = '127.0.0.1'
const READY_MS = 60_000

export type GatewayProcess = GatewayKeeper & {
  readonly pid: number
  /** kill -9. */
  kill(): Promise<void>
  /** With the gateway down: its database as it is now is put aside. */
  keepDatabase(): Promise<void>
  /** With the gateway down: the database is what was put aside, or empty. */
  setDatabase(what: 'kept' | 'empty'): Promise<void>
}

export async function gatewayProcess({ dir, root, token }: { dir: string; root: Root; token: string }): Promise<GatewayProcess> {
  const path = (name: string) => join(dir, name)
  const relayPort = await freePort()
  const adminPort = await freePort()
  const { keys, certificate } = identityOf(root, 'gateway', 'gateway')
  await writeFile(path('gateway.keys'), encodeKeys(keys), { mode: 0o600 })
  await writeFile(path('gateway.cert'), armor('CERTIFICATE', certificate))
  await writeFile(path('root.pub'), armor('ROOT PUBLIC KEY', root.signPublic))
  await writeFile(path('gateway.token'), token, { mode: 0o600 })
  await writeFile(path('revocations'), listFileOf(root))
  const config = {
    id: 'gateway',
    stateDir: path('gateway-state'),
    listen: { host: HOST, ports: { quic: relayPort, tls: 'off', webtransport: 'off' } },
    admin: { host: HOST, port: adminPort, tokenFile: path('gateway.token') },
    identity: { keys: path('gateway.keys'), certificate: path('gateway.cert'), root: path('root.pub') },
    revocations: path('revocations'),
    log: { level: 'info', format: 'text' },
  }
  await writeFile(path('gateway.yaml'), toYaml(config))
  const adminUrl = `http://${HOST}:${adminPort}`
  let running: ReturnType<typeof spawnGodwit> | undefined
  const isReady = () => requestJson<unknown>({ url: adminUrl, token, path: '/healthz', timeoutMs: 1_000 }).catch(() => undefined)
  return {
    get pid() {
      if (!running?.child.pid) throw new Error('the gateway does not run')
      return running.child.pid
    },
    relayPort,
    adminUrl,
    gateway() {
      throw new Error('the gateway is a process of its own')
    },
    async start() {
      running = spawnGodwit(['gateway', '--config', path('gateway.yaml')], path('gateway.log'))
      await eventually(isReady, { ms: READY_MS, what: 'the gateway' })
    },
    async stop() {
      await running?.stop()
      running = undefined
    },
    async kill() {
      const child = running!.child
      const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
      child.kill('SIGKILL')
      await ended
      running = undefined
    },
    async keepDatabase() {
      await cp(path('gateway-state'), path('gateway-state.kept'), { recursive: true })
    },
    async setDatabase(what) {
      await rm(path('gateway-state'), { recursive: true, force: true })
      if (what === 'kept') await cp(path('gateway-state.kept'), path('gateway-state'), { recursive: true })
    },
  }
}
