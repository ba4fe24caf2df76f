// The OpenAPI 3.1 document of an HTTP API, and its table of routes in docs/reference/protocol.md, generated from the
// table of operations (api.ts). Pure: scripts/openapi.ts writes both, and a test compares the files. Always holds: the
// schemas are those that validate requests and type responses, each once, under a name; errors are grouped by HTTP
// status.
import { ErrorBody } from '../wire/control.ts'
import { ERRORS, type ErrorCode } from '../wire/errors.ts'
import { z } from '../wire/schema.ts'
import type { Operation } from './api.ts'
import { statusOf } from './http.ts'
import { EVENT_STREAM } from './sse.ts'

export type ApiDocument = {
  title: string
  description: string
  server: { url: string; description: string }
  /** The party that may use routes that are not open, for the table of routes. */
  who: string
  /** Whether `who` authenticates by a bearer token. */
  hasToken: boolean
  operations: readonly Operation<never>[]
  /** Names of shared schemas. The others are named after their operation. */
  schemas: Readonly<Record<string, z.ZodType>>
}

type Json = Record<string, unknown>

const ref = (name: string) => ({ $ref: `#/components/schemas/${name}` })
const ANY = '__shared'
const upperFirst = (text: string) => `${text[0]?.toUpperCase()}${text.slice(1)}`

/** Every schema with its name: shared ones, then those of requests and responses. */
function namesOf({ operations, schemas }: ApiDocument): Map<z.ZodType, string> {
  const names = new Map<z.ZodType, string>([[ErrorBody, 'Error']])
  const add = (schema: z.ZodType | undefined, name: string) => void (schema && !names.has(schema) && names.set(schema, name))
  for (const [name, schema] of Object.entries(schemas)) add(schema, name)
  for (const { id, body, answer } of operations) {
    add(body, `${upperFirst(id)}Request`)
    if ('schema' in answer) add(answer.schema, `${upperFirst(id)}Answer`)
  }
  return names
}

export function openApiDocument(api: ApiDocument): Json {
  const names = namesOf(api)
  const paths: Record<string, Json> = {}
  for (const operation of api.operations) {
    const path = operation.path.replace(/:(\w+)/g, '{$1}')
    paths[path] = { ...paths[path], [operation.method.toLowerCase()]: operationOf(operation, names, api) }
  }
  return {
    openapi: '3.1.0',
    info: { title: api.title, version: '1.0.0', description: api.description, license: { name: 'Apache-2.0', identifier: 'Apache-2.0' } },
    servers: [api.server],
    ...(api.hasToken ? { security: [{ token: [] }] } : {}),
    paths,
    components: {
      schemas: schemasOf(names),
      ...(api.hasToken ? { securitySchemes: { token: { type: 'http', scheme: 'bearer' } } } : {}),
    },
  }
}

export const openApiText = (api: ApiDocument): string => `${JSON.stringify(openApiDocument(api), null, 2)}\n`

function schemasOf(names: ReadonlyMap<z.ZodType, string>): Json {
  const registry = z.registry<{ id: string }>()
  for (const [schema, id] of names) registry.add(schema, { id })
  const { schemas } = z.toJSONSchema(registry, { io: 'input', target: 'draft-2020-12', uri: id => ref(id).$ref })
  const { [ANY]: shared, ...own } = schemas as Record<string, Json>
  assertAnyJson(shared)
  return Object.fromEntries(
    Object.entries(own)
      .map(([name, { $schema: _, $id: __, ...schema }]): [string, unknown] => [name, withoutShared(schema)])
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  )
}

/** The one schema that refers to itself is "any JSON": it is written as {}. */
function assertAnyJson(shared: Json | undefined): void {
  for (const [name, schema] of Object.entries((shared?.['$defs'] ?? {}) as Record<string, Json>)) {
    const kinds = (schema['anyOf'] as Json[] | undefined)?.length
    if (kinds !== 6) throw new TypeError(`${name} is shared and is not z.json(): give the schema a name of its own`)
  }
}

function withoutShared(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutShared)
  if (typeof value !== 'object' || value === null) return value
  if (String((value as Json)['$ref'] ?? '').includes(ANY)) return {}
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, withoutShared(inner)]))
}

function operationOf(operation: Operation<never>, names: ReadonlyMap<z.ZodType, string>, { hasToken }: ApiDocument): Json {
  const { id, path, summary, open, params = {}, query, body } = operation
  const parameters = [
    ...[...path.matchAll(/:(\w+)/g)].map(([, name = '']) => parameterOf('path', name, params[name], true)),
    ...Object.entries(query?.shape ?? {}).map(([name, schema]) => parameterOf('query', name, schema as z.ZodType, false)),
  ]
  const content = (schema: z.ZodType) => ({ content: { 'application/json': { schema: ref(names.get(schema)!) } } })
  return {
    operationId: id,
    summary,
    tags: [path.split('/')[2] ?? 'process'],
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(body ? { requestBody: { ...content(body), required: !body.safeParse({}).success } } : {}),
    responses: { ...answerOf(operation, names), ...errorsOf(operation, hasToken) },
    ...(open && hasToken ? { security: [] } : {}),
  }
}

const parameterOf = (where: 'path' | 'query', name: string, schema: z.ZodType | undefined, required: boolean): Json => {
  const { $schema: _, ...inner } = schema ? (z.toJSONSchema(schema, { io: 'input', target: 'draft-2020-12' }) as Json) : { type: 'string' }
  const { description, ...rest } = inner as Json
  return { name, in: where, required, ...(description === undefined ? {} : { description }), schema: rest }
}

const TYPES = { json: 'application/json', ndjson: 'application/x-ndjson', events: EVENT_STREAM } as const
const MEANINGS = {
  json: 'done',
  ndjson: 'one JSON value in each line, as they come',
  events: 'server-sent events, as they come: `data` is JSON',
  text: 'text',
  socket: 'from here on raw bytes, both ways',
} as const

function answerOf({ status = 200, answer }: Operation<never>, names: ReadonlyMap<z.ZodType, string>): Json {
  const description = MEANINGS[answer.kind]
  if (answer.kind === 'socket') return { 101: { description } }
  if (answer.kind === 'text') return { [status]: { description, content: { 'text/plain': { schema: { type: 'string' } } } } }
  return { [status]: { description, content: { [TYPES[answer.kind]]: { schema: ref(names.get(answer.schema)!) } } } }
}

/** All error codes of an operation, except forwarded ones. */
export function codesOf({ open, params, query, body, errors = [] }: Operation<never>, hasToken: boolean): ErrorCode[] {
  const common: ErrorCode[] = [
    ...(open || !hasToken ? [] : (['TOKEN_INVALID'] as const)),
    ...(params || query || body ? (['CONFIG_INVALID'] as const) : []),
    ...(body ? (['LIMIT_EXCEEDED'] as const) : []),
    'INTERNAL',
  ]
  return Object.keys(ERRORS).filter(code => common.includes(code as ErrorCode) || errors.includes(code as ErrorCode)) as ErrorCode[]
}

function errorsOf(operation: Operation<never>, hasToken: boolean): Json {
  const byStatus = new Map<number, ErrorCode[]>()
  for (const code of codesOf(operation, hasToken)) byStatus.set(statusOf({ code }), [...(byStatus.get(statusOf({ code })) ?? []), code])
  const listed = [...byStatus].map(([status, codes]) => [
    status,
    {
      description: codes.join(', '),
      content: { 'application/json': { schema: { allOf: [ref('Error'), { type: 'object', properties: { code: { enum: codes } } }] } } },
    },
  ])
  const others = {
    description: `and what ${operation.relays} answers: any code of docs/reference/protocol.md`,
    content: { 'application/json': { schema: ref('Error') } },
  }
  return { ...Object.fromEntries(listed), ...(operation.relays ? { default: others } : {}) }
}

/** The rows of the API's table in docs/reference/protocol.md. */
export function routeRows(api: ApiDocument): string[] {
  const names = namesOf(api)
  const code = (text: string) => `\`${text}\``
  return api.operations.map(({ method, path, open, query, body, status = 200, answer, summary }) => {
    const asked = [...Object.keys(query?.shape ?? {}).map(name => code(`?${name}`)), ...(body ? [names.get(body)!] : [])].join(', ')
    const shape = 'schema' in answer ? `${names.get(answer.schema)!}${KINDS[answer.kind]}` : KINDS[answer.kind]
    return `| ${method} | ${code(path)} | ${open ? 'anyone' : api.who} | ${asked} | ${answer.kind === 'socket' ? 101 : status} ${shape} | ${summary} |`
  })
}

const KINDS = { json: '', ndjson: ' (lines)', events: ' (events)', text: 'text', socket: 'raw bytes' } as const
