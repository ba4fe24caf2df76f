// Answers of an HTTP API against its committed OpenAPI document, as an integrator's validator would: it knows the JSON
// file and nothing of our code. Not a test itself.
import { readFileSync } from 'node:fs'
import { z } from 'zod'

type Content = { content?: Record<string, { schema: object }> }
type OpenApiOperation = {
  operationId: string
  responses: Record<string, Content & { description: string }>
  parameters?: { name: string; in: string }[]
}
type OpenApiDocument = {
  openapi: string
  paths: Record<string, Record<string, OpenApiOperation>>
  components: { schemas: Record<string, object> }
}

export const readDocument = (name: string): OpenApiDocument =>
  JSON.parse(readFileSync(new URL(`../../docs/reference/${name}`, import.meta.url), 'utf8')) as OpenApiDocument

export function createApiChecker(document: OpenApiDocument) {
  const local = (schema: object) => JSON.parse(JSON.stringify(schema).replaceAll('#/components/schemas/', '#/$defs/')) as object
  const $defs = local(document.components.schemas)
  const compiled = new Map<object, z.ZodType>()
  const schemaOf = (schema: object): z.ZodType => {
    const known = compiled.get(schema) ?? z.fromJSONSchema({ ...local(schema), $defs } as Parameters<typeof z.fromJSONSchema>[0])
    compiled.set(schema, known)
    return known
  }
  const table = Object.entries(document.paths).map(([path, operations]) => ({
    path,
    operations,
    pattern: new RegExp(`^${path.replace(/\{\w+\}/g, '[^/]+')}$`),
  }))
  const seen = new Set<string>()
  const find = (method: string, target: string) => {
    const pathname = target.split('?')[0]!
    // The literal path goes before the one with a parameter in its place.
    const fits = table.filter(({ pattern }) => pattern.test(pathname)).sort((a, b) => a.path.split('{').length - b.path.split('{').length)
    return fits.map(({ operations }) => operations[method.toLowerCase()]).find(operation => operation !== undefined)
  }
  return {
    /** Throws when the document has no such operation, or another answer for it. */
    answer(method: string, target: string, body: unknown): void {
      const operation = find(method, target)
      if (!operation) throw new Error(`${method} ${target} is not in the document`)
      seen.add(operation.operationId)
      const response = Object.entries(operation.responses).find(([status]) => /^2/.test(status))?.[1]
      const schema = response?.content?.['application/json']?.schema
      if (!schema) throw new Error(`${operation.operationId} has no JSON answer`)
      const result = schemaOf(schema).safeParse(body)
      if (!result.success) throw new Error(`${operation.operationId}: ${JSON.stringify(body)}: ${JSON.stringify(result.error.issues[0])}`)
    },
    /**
     * Throws when the document does not list the code for the operation, at whatever status. Of a route that there is
     * not, nothing is listed.
     */
    error(method: string, target: string, code: string): void {
      const operation = find(method, target)
      if (!operation || operation.responses['default']) return
      const listed = Object.values(operation.responses).some(response => JSON.stringify(response.content ?? {}).includes(`"${code}"`))
      if (!listed) throw new Error(`${operation.operationId} answers ${code}: the document does not list it`)
    },
    seen: () => seen,
  }
}
