export * from "./client.js";
export { type DeprecationNotice } from "./deprecations.js";
export * from "./errors.js";
export { Pages, type ClientOptions } from "./http.js";
export type { components, operations, paths } from "./schema.js";
export * from "./webhooks.js";
