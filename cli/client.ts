// Requests of commands to the gateway and the node. Configuration, schemas and HTTP are loaded at the first request, so
// --help stays fast.

import type { NodeConfig } from '../edge-node/config.ts'
import type { GatewayConfig } from '../gateway/config.ts'
import type { HttpTarget } from '../ops/http-client.ts'
import type { ClientFlags, LoadOptions, MqttFlags } from './config.ts'
import type { Io } from './io.ts'

type Question = { method?: 'GET' | 'POST' | 'PUT' | 'DELETE'; path: string; body?: unknown; timeoutMs?: number }

const config = () => import('./config.ts')
const http = () => import('../ops/http-client.ts')

export const gatewayTarget = async (io: Io, flags: ClientFlags): Promise<HttpTarget> => await (await config()).gatewayTarget(io, flags)
export const nodeTarget = async (io: Io, flags: ClientFlags): Promise<HttpTarget> => await (await config()).nodeTarget(io, flags)
export const mqttTarget = async (io: Io, flags: MqttFlags) => await (await config()).mqttTarget(io, flags)
export const loadNodeConfig = async (io: Io, options: LoadOptions): Promise<NodeConfig> =>
  await (await config()).loadNodeConfig(io, options)
export const loadGatewayConfig = async (io: Io, options: LoadOptions): Promise<GatewayConfig> =>
  await (await config()).loadGatewayConfig(io, options)

/** The gateway's JSON answer; throws its error, or GATEWAY_UNREACHABLE. */
export async function askGateway<T>(io: Io, flags: ClientFlags, question: Question): Promise<T> {
  const target = await gatewayTarget(io, flags)
  return await (await http()).requestJson<T>({ ...target, ...question })
}

/** The node's JSON answer; throws its error, or NODE_UNREACHABLE. */
export async function askNode<T>(io: Io, flags: ClientFlags, question: Question): Promise<T> {
  const target = await nodeTarget(io, flags)
  return await (await http()).requestJson<T>({ ...target, ...question })
}
