// An HTTP API as one table: for each operation its route, the schemas of request and response, its errors, and its
// handler. Enters: the table and the dependencies of its handlers. Leaves: routes for the server (http.ts); openapi.ts
// generates documents from the same table. Always holds: a handler receives only validated values; a wrong parameter or
// body is CONFIG_INVALID (400), and the error names it.
import type { Duplex } from 'node:stream'
import { type ErrorCode, GodwitError } from '../wire/errors.ts'
import { check, type z } from '../wire/schema.ts'
import type { RequestContext, Route, UpgradeRoute } from './http.ts'

/** The response of an operation on success. `socket`: the connection becomes raw bytes in both directions (101). */
type AnswerForm =
  | { kind: 'json'; schema: z.ZodType }
  | { kind: 'ndjson' | 'events'; schema: z.ZodType }
  | { kind: 'text' }
  | { kind: 'socket' }

type Shapes = Record<string, z.ZodType>

export type Operation<D> = {
  /** Its name in the document: unique within the API. */
  id: string
  method: Route['method']
  path: string
  summary: string
  /** Does not require the token. */
  open?: boolean
  /** Of the path, each by its name. */
  params?: Shapes
  query?: z.ZodObject
  body?: z.ZodType
  status?: 200 | 201 | 202
  answer: AnswerForm
  /** In addition to the errors that every operation may have. */
  errors?: readonly ErrorCode[]
  /** The party whose errors are forwarded: this text completes "and what ... answers". */
  relays?: string
  handle(parts: D, asked: never): unknown
}

type Asked<P extends Shapes, Q extends z.ZodType, B extends z.ZodType> = Omit<RequestContext, 'params' | 'query'> & {
  params: { [K in keyof P]: z.output<P[K]> }
  query: z.output<Q>
  body: z.output<B>
}

type Facts<P, Q, B> = Omit<Operation<never>, 'id' | 'method' | 'path' | 'params' | 'query' | 'body' | 'answer' | 'handle'> & {
  params?: P
  query?: Q
  body?: B
}
/** `GET /v1/vms/:vm` */
type RouteText = `${Route['method']} /${string}`

/**
 * Creates the entries of a table whose handlers have the dependencies `D`; the types of a handler follow from its
 * schemas.
 */
export function operationsWith<D>() {
  const entry = (id: string, route: RouteText, spec: object): Operation<D> => {
    const [method, path] = route.split(' ')
    return { id, method, path, ...spec } as unknown as Operation<D>
  }
  return {
    json<P extends Shapes, Q extends z.ZodObject, B extends z.ZodType, A extends z.ZodType>(
      id: string,
      route: RouteText,
      spec: Facts<P, Q, B> & { answer: A; handle(parts: D, asked: Asked<P, Q, B>): z.input<A> | Promise<z.input<A>> },
    ): Operation<D> {
      return entry(id, route, { ...spec, answer: { kind: 'json', schema: spec.answer } })
    },
    /** The handler writes the response itself. */
    stream<P extends Shapes, Q extends z.ZodObject>(
      id: string,
      route: RouteText,
      spec: Facts<P, Q, z.ZodType> & { answer: AnswerForm; handle(parts: D, asked: Asked<P, Q, z.ZodType>): Promise<void> },
    ): Operation<D> {
      return entry(id, route, spec)
    },
    socket<P extends Shapes, Q extends z.ZodObject>(
      id: string,
      route: RouteText,
      spec: Facts<P, Q, z.ZodType> & {
        handle(parts: D, asked: Pick<Asked<P, Q, z.ZodType>, 'params' | 'query'>): (socket: Duplex) => void
      },
    ): Operation<D> {
      return entry(id, route, { ...spec, answer: { kind: 'socket' } })
    },
  }
}

type Handler = (parts: unknown, asked: unknown) => unknown

/** The table in the form of the server's routes. */
export function routesOf<D>(operations: readonly Operation<D>[], parts: D): { routes: Route[]; upgrades: UpgradeRoute[] } {
  const isSocket = ({ answer }: Operation<D>) => answer.kind === 'socket'
  const routes = operations
    .filter(operation => !isSocket(operation))
    .map((operation): Route => {
      const { method, path, open = false, status = 200, answer } = operation
      const handle = operation.handle as Handler
      return {
        method,
        path,
        open,
        async handle(context) {
          const asked = { ...context, ...askedOf(operation, context), body: await bodyOf(operation, context) }
          const body = await handle(parts, asked)
          return answer.kind === 'json' ? { status, body } : undefined
        },
      }
    })
  const upgrades = operations.filter(isSocket).map(
    (operation): UpgradeRoute => ({
      path: operation.path,
      handle: async context => (operation.handle as Handler)(parts, askedOf(operation, context)) as (socket: Duplex) => void,
    }),
  )
  return { routes, upgrades }
}

const code = 'CONFIG_INVALID'

function askedOf({ params: shapes = {}, query }: Operation<never>, context: Pick<RequestContext, 'params' | 'query'>) {
  const params = Object.entries(shapes).map(([name, shape]) => [name, check(shape, context.params[name], { what: name, code })])
  return { params: Object.fromEntries(params), query: query && check(query, once(context.query), { what: 'query', code }) }
}

/** A repeated parameter is an error, because it is ambiguous. */
function once(query: URLSearchParams): Record<string, string> {
  const values = new Map<string, string>()
  for (const [name, value] of query) {
    if (values.has(name)) throw new GodwitError(code, `query: ${name.slice(0, 64)}: given more than once`)
    values.set(name, value)
  }
  return Object.fromEntries(values)
}

async function bodyOf({ body }: Operation<never>, { json }: RequestContext): Promise<unknown> {
  return body && check(body, (await json()) ?? {}, { what: 'request body', code })
}
