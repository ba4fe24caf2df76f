// The only reader of configuration files and of the environment. Enters: flags, environment, YAML. Leaves: checked
// configurations, or CONFIG_INVALID that names every wrong field with its line. Precedence: flag, environment, file,
// default. Relative paths in a file count from the folder of that file.
import { dirname, resolve } from 'node:path'
import { NodeConfig, nodeDefaults } from '../edge-node/config.ts'
import { GatewayConfig, gatewayDefaults } from '../gateway/config.ts'
import { DEFAULT_MQTT_PORT, MQTT_PATHS, mqttDefaults } from '../gateway/fronts/mqtt/config.ts'
import type { BrokerTarget } from '../mqtt/client.ts'
import { exists, readSecret, readText } from '../ops/files.ts'
import type { HttpTarget } from '../ops/http-client.ts'
import { hasCredentials } from '../ops/redact.ts'
import { parseYaml, type YamlValue } from '../ops/yaml.ts'
import { GodwitError } from '../wire/errors.ts'
import { z } from '../wire/schema.ts'
import type { Io } from './io.ts'
import { defaultPaths } from './paths.ts'
import { didYouMean } from './suggest.ts'

type Tree = { [key: string]: unknown }

/** Environment variables that override a field of the gateway's or the node's file. */
const FIELD_ENV: Record<string, readonly string[]> = {
  GODWIT_LOG_LEVEL: ['log', 'level'],
  GODWIT_LOG_FORMAT: ['log', 'format'],
}
const NODE_ENV: Record<string, readonly string[]> = { ...FIELD_ENV, GODWIT_TRANSPORT: ['transport'] }

const GATEWAY_PATHS = [
  ...['stateDir', 'admin.tokenFile', 'identity.keys', 'identity.certificate', 'identity.root', 'revocations', 'mec021.tokenFile'],
  ...['admin.tls.certificate', 'admin.tls.key', 'mec021.clients.*.tokenFile', 'mec021.tls.certificate', 'mec021.tls.key'],
  ...MQTT_PATHS.map(path => `mqtt.${path}`),
]
const NODE_PATHS = [
  'stateDir',
  'runDir',
  'imagesDir',
  'sharedDir',
  'identity.keys',
  'identity.certificate',
  'identity.root',
  'api.socket',
  'revocations',
]

export type LoadOptions = {
  /** From --config. */
  file?: string | undefined
  /** Fields from flags. */
  flags?: Tree
}

/** The gateway's configuration. CONFIG_UNREADABLE when --config names no file; the default file may be absent. */
export async function loadGatewayConfig(io: Io, { file, flags = {} }: LoadOptions = {}): Promise<GatewayConfig> {
  const paths = defaultPaths(io)
  const source = await readSource(io, file, `${paths.configDir}/gateway.yaml`, GATEWAY_PATHS)
  return checkConfig(GatewayConfig, source, merge(gatewayDefaults(paths), source.tree, fromEnv(io, FIELD_ENV), flags))
}

/** The node's configuration. */
export async function loadNodeConfig(io: Io, { file, flags = {} }: LoadOptions = {}): Promise<NodeConfig> {
  const paths = defaultPaths(io)
  const source = await readSource(io, file, `${paths.configDir}/node.yaml`, NODE_PATHS)
  return checkConfig(NodeConfig, source, merge(nodeDefaults(paths), source.tree, fromEnv(io, NODE_ENV), flags))
}

export const ClientConfig = z.strictObject({
  gateway: z.strictObject({ url: z.string().optional(), tokenFile: z.string().optional(), ca: z.string().optional() }).optional(),
  socket: z.string().optional(),
  mqtt: z
    .strictObject({
      url: z.string().optional(),
      tenant: z.string().optional(),
      user: z.string().optional(),
      passwordFile: z.string().optional(),
      ca: z.string().optional(),
      certificate: z.string().optional(),
      key: z.string().optional(),
    })
    .optional(),
})

export type ClientFlags = {
  gateway?: string | undefined
  'token-file'?: string | undefined
  'gateway-ca'?: string | undefined
  socket?: string | undefined
}

/** The gateway's admin API as the commands reach it. */
export async function gatewayTarget(io: Io, flags: ClientFlags): Promise<HttpTarget> {
  const paths = defaultPaths(io)
  const { gateway = {} } = await clientConfig(io)
  const url = flags.gateway ?? io.env['GODWIT_GATEWAY'] ?? gateway.url ?? 'http://127.0.0.1:7445'
  if (hasCredentials(url))
    throw new GodwitError('USAGE', "the gateway's URL must not contain a user name or a password: ps and logs would show them", {
      hint: 'give the token with --token-file or GODWIT_TOKEN',
    })
  const caFile = flags['gateway-ca'] ?? io.env['GODWIT_GATEWAY_CA'] ?? gateway.ca
  const where = { url, ...(caFile === undefined ? {} : { ca: await readText(caFile) }) }
  const inline = flags['token-file'] === undefined ? io.env['GODWIT_TOKEN'] : undefined
  if (inline) return { ...where, token: inline }
  const tokenFile = flags['token-file'] ?? io.env['GODWIT_TOKEN_FILE'] ?? gateway.tokenFile ?? gatewayDefaults(paths).admin.tokenFile
  try {
    return { ...where, token: (await readSecret(tokenFile)).trim() }
  } catch (error) {
    if (!(error instanceof GodwitError) || error.code !== 'CONFIG_UNREADABLE') throw error
    throw new GodwitError('CONFIG_UNREADABLE', `the gateway's admin token: ${error.message}`, {
      cause: error,
      hint: 'the gateway writes it at its first start (admin.tokenFile); give it with --token-file or GODWIT_TOKEN',
    })
  }
}

export type MqttFlags = {
  broker?: string | undefined
  tenant?: string | undefined
  user?: string | undefined
  'password-file'?: string | undefined
  ca?: string | undefined
  certificate?: string | undefined
  'certificate-key'?: string | undefined
}

/** The MQTT broker as the mqtt commands reach it, and the tenant. */
export async function mqttTarget(io: Io, flags: MqttFlags): Promise<{ target: BrokerTarget; tenant: string; user: string | undefined }> {
  const { mqtt = {} } = await clientConfig(io)
  const { env } = io
  const url = flags.broker ?? env['GODWIT_MQTT_URL'] ?? mqtt.url ?? `mqtt://127.0.0.1:${DEFAULT_MQTT_PORT}`
  if (hasCredentials(url))
    throw new GodwitError('USAGE', "the broker's URL must not contain a user name or a password: ps and logs would show them", {
      hint: 'give them with --user and --password-file (GODWIT_MQTT_USER, GODWIT_MQTT_PASSWORD_FILE)',
    })
  if (!/^mqtts?:\/\/[^/@]+$/.test(url)) throw new GodwitError('USAGE', `'${url}': expected mqtt://host:port or mqtts://host:port`)
  const user = flags.user ?? env['GODWIT_MQTT_USER'] ?? mqtt.user
  const passwordFile = flags['password-file'] ?? env['GODWIT_MQTT_PASSWORD_FILE'] ?? mqtt.passwordFile
  const read = async (path: string | undefined, how: (path: string) => Promise<string>) =>
    path === undefined ? undefined : await how(path)
  const password = (await read(passwordFile, readSecret))?.trim()
  const tls = {
    ca: await read(flags.ca ?? mqtt.ca, readText),
    certificate: await read(flags.certificate ?? mqtt.certificate, readText),
    key: await read(flags['certificate-key'] ?? mqtt.key, readSecret),
  }
  const tenant = await commandTenant(io, flags.tenant)
  return { target: { url, username: user, password, tls, version: 'auto' }, tenant, user }
}

/** The tenant that commands are signed for. */
export async function commandTenant(io: Io, flag: string | undefined): Promise<string> {
  return flag ?? io.env['GODWIT_MQTT_TENANT'] ?? (await clientConfig(io)).mqtt?.tenant ?? mqttDefaults.tenant
}

/** The node's API as the vm commands reach it. */
export async function nodeTarget(io: Io, flags: ClientFlags): Promise<HttpTarget> {
  const socketPath = flags.socket ?? io.env['GODWIT_SOCKET'] ?? (await clientConfig(io)).socket ?? nodeDefaults(defaultPaths(io)).api.socket
  return { socketPath }
}

async function clientConfig(io: Io): Promise<z.output<typeof ClientConfig>> {
  const source = await readSource(
    io,
    undefined,
    `${defaultPaths(io).configDir}/client.yaml`,
    ['gateway.tokenFile', 'gateway.ca', 'socket', 'mqtt.passwordFile', 'mqtt.ca', 'mqtt.certificate', 'mqtt.key'],
    'GODWIT_CLIENT_CONFIG',
  )
  return checkConfig(ClientConfig, source, source.tree)
}

type Source = { what: string; tree: Tree; yaml: YamlValue | undefined }

async function readSource(
  io: Io,
  flag: string | undefined,
  fallback: string,
  pathFields: string[],
  env = 'GODWIT_CONFIG',
): Promise<Source> {
  const asked = flag ?? io.env[env]
  if (asked === undefined && !(await exists(fallback))) return { what: fallback, tree: {}, yaml: undefined }
  const path = resolve(asked ?? fallback)
  const yaml = parseYaml(await readText(path), { what: path })
  const tree = yaml.value ?? {}
  if (!isTree(tree)) throw new GodwitError('CONFIG_INVALID', `${path}: expected fields with values, such as 'site: berlin-1'`)
  for (const field of pathFields) resolvePath(tree, field.split('.'), dirname(path))
  return { what: path, tree, yaml }
}

function resolvePath(tree: Tree, [key, ...rest]: string[], folder: string): void {
  if (key === '*') {
    for (const name of Object.keys(tree)) resolvePath(tree, [name, ...rest], folder)
    return
  }
  const value = tree[key!]
  if (rest.length > 0) {
    if (isTree(value)) resolvePath(value, rest, folder)
  } else if (typeof value === 'string' && value !== '') tree[key!] = resolve(folder, value)
}

function checkConfig<S extends z.ZodType>(schema: S, { what, yaml }: Source, value: Tree): z.output<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const faults = result.error.issues.slice(0, 5).map(issue => faultOf(schema, issue, yaml))
  throw new GodwitError('CONFIG_INVALID', `${what}: ${faults.join('; ')}`)
}

function faultOf(schema: z.ZodType, issue: z.core.$ZodIssue, yaml: YamlValue | undefined): string {
  const path = issue.path.map(part => (typeof part === 'number' ? part : String(part)))
  const line = yaml?.lineOf(path)
  const at = line === undefined || issue.path.length === 0 ? '' : `line ${line}: `
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!
    const name = [...path, key].join('.')
    const keyLine = yaml?.lineOf([...path, key])
    return `${keyLine === undefined ? '' : `line ${keyLine}: `}${name}: unknown field${didYouMean(key, fieldsAt(schema, path))}`
  }
  const isMissing = issue.code === 'invalid_type' && issue.input === undefined && /received undefined|must be/.test(issue.message)
  return `${at}${path.join('.')}: ${isMissing ? 'is missing' : issue.message.replace(/^Invalid input: /, '')}`
}

/** Field names of the strict schema object at a path. */
function fieldsAt(schema: z.ZodType, path: readonly (string | number)[]): string[] {
  let at: unknown = schema
  for (const part of path) at = at instanceof z.ZodObject ? unwrap(at.shape[part]) : undefined
  return at instanceof z.ZodObject ? Object.keys(at.shape) : []
}

const unwrap = (schema: unknown): unknown => (schema instanceof z.ZodOptional ? schema.unwrap() : schema)

function fromEnv({ env }: Io, names: Record<string, readonly string[]>): Tree {
  const tree: Tree = {}
  for (const [name, path] of Object.entries(names)) {
    const value = env[name]
    if (value === undefined || value === '') continue
    let at = tree
    for (const part of path.slice(0, -1)) {
      at[part] ??= {}
      at = at[part] as Tree
    }
    at[path.at(-1)!] = value
  }
  return tree
}

const isTree = (value: unknown): value is Tree => typeof value === 'object' && value !== null && !Array.isArray(value)

/** Later trees override earlier ones field by field; undefined does not. */
export function merge(...trees: Tree[]): Tree {
  const merged: Tree = {}
  for (const tree of trees) {
    for (const [key, value] of Object.entries(tree)) {
      if (value === undefined) continue
      const before = merged[key]
      merged[key] = isTree(value) && isTree(before) ? merge(before, value) : value
    }
  }
  return merged
}
